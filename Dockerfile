# A static binary and nothing else: `docker build -t weft .`
FROM rust:1.95-alpine AS build
RUN apk add --no-cache musl-dev make
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bins --target "$(rustc -vV | sed -n 's/^host: //p')" \
 && mkdir /out && cp target/*/release/weft target/*/release/weft-control /out/

FROM scratch
COPY --from=build /out/weft /out/weft-control /usr/local/bin/
USER 1337:1337
ENTRYPOINT ["/usr/local/bin/weft"]
CMD ["--help"]
