//! A few HTTP requests to servers of the test.

use std::time::Duration;

use base64::Engine as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

/// Status code and body. `authorization` is the value of that header, if any.
async fn request(
    method: &str,
    address: &str,
    path: &str,
    authorization: Option<&str>,
    body: &str,
) -> std::io::Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let authorization = authorization.map_or_else(String::new, |value| format!("authorization: {value}\r\n"));
        let head = format!(
            "{method} {path} HTTP/1.0\r\nhost: {address}\r\n{authorization}content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer.as_str(), ""));
        let code = head.split_ascii_whitespace().nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Ok((code, body.to_owned()))
    };
    tokio::time::timeout(Duration::from_secs(60), exchange).await?
}

pub(crate) async fn get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    request("GET", address, path, None, "").await
}

/// A call of RabbitMQ's management API; panics unless it succeeds. The path begins with `/api/`.
pub(crate) async fn management(url: &Url, method: &str, path: &str, body: &str) -> String {
    let credentials = format!("{}:{}", url.username(), url.password().unwrap_or_default());
    let authorization = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(credentials));
    let address = format!("{}:{}", url.host_str().unwrap(), url.port_or_known_default().unwrap());
    let (code, answer) = request(method, &address, path, Some(&authorization), body).await.unwrap();
    assert!((200..300).contains(&code), "{method} {path}: {code} {answer}");
    answer
}
