# The relay as a container: docker build -t postrider .
# It runs without a volume and without root; DATABASE_URL and AMQP_URL are all that it needs. On SIGTERM it finishes what is in
# flight and exits within 20 s: give it 25 (docker stop -t 25, stop_grace_period, terminationGracePeriodSeconds).
ARG RUST_IMAGE=rust:1-slim-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
# An empty crate with the same dependencies: their layer is built again only when one of the two files changes. The manifest
# names test and bench files, which must exist.
RUN sed -n 's/^path = "\(.*\)"/\1/p' Cargo.toml | xargs -I FILE install -D /dev/null FILE \
 && echo 'fn main() {}' >src/main.rs \
 && cargo build --locked --release
COPY src src
COPY sql sql
COPY LICENSE-APACHE LICENSE-MIT ./
# Everything for the image in one tree, with the certificate authorities for verify-full, which the Rust image has: nothing needs to
# be installed in the second stage.
RUN touch src/lib.rs src/main.rs && cargo build --locked --release \
 && install -D target/release/postrider /image/usr/local/bin/postrider \
 && install -D -m 644 -t /image/etc/ssl/certs /etc/ssl/certs/ca-certificates.crt \
 && install -D -m 644 -t /image/usr/share/doc/postrider LICENSE-APACHE LICENSE-MIT

FROM ${BASE_IMAGE}
# One COPY: without BuildKit, the COPY after one that changes nothing (the certificates may be there) fails (moby issue 37965).
COPY --from=build /image /
LABEL org.opencontainers.image.title="postrider" \
      org.opencontainers.image.description="Outbox relay: committed rows from PostgreSQL's WAL to RabbitMQ, confirmed and in order" \
      org.opencontainers.image.source="https://github.com/postrider/postrider" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
ENV POSTRIDER_ADMIN_LISTEN=0.0.0.0:9750
EXPOSE 9750
# Numeric, so that Kubernetes' runAsNonRoot can see that it isn't root.
USER 65532:65532
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["postrider", "status", "--ready"]
ENTRYPOINT ["postrider"]
CMD ["run"]
