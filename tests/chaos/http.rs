//! HTTP requests to the relay's admin listener and to RabbitMQ's management API.

use std::time::Duration;

use base64::Engine as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Outcome;

/// Status code and body. `user` is name and password of Basic authorization.
pub(crate) async fn request(
    method: &str,
    address: &str,
    path: &str,
    user: Option<(&str, &str)>,
    body: &str,
) -> Outcome<(u16, String)> {
    let authorization = user.map_or_else(String::new, |(name, password)| {
        let credentials = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"));
        format!("authorization: Basic {credentials}\r\n")
    });
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let head = format!(
            "{method} {path} HTTP/1.0\r\nhost: {address}\r\n{authorization}content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = tokio::time::timeout(Duration::from_secs(10), exchange).await??;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer.as_str(), ""));
    let code = head.split_ascii_whitespace().nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Ok((code, body.to_owned()))
}
