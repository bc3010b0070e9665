# Two static binaries and nothing else: `docker build -t weft .`
FROM rust:1.95-alpine AS build
# The allocator is C.
RUN apk add --no-cache musl-dev gcc
WORKDIR /src
COPY . .
ARG REVISION
ENV WEFT_REVISION=$REVISION
# Alpine's own target is musl: static without further flags.
RUN cargo build --release --locked --bin weft --bin weft-control \
 && mkdir /out && cp target/release/weft target/release/weft-control /out/

FROM scratch
COPY --from=build /out/weft /out/weft-control /usr/local/bin/
# Ports below 1024 need NET_BIND_SERVICE.
USER 1337:1337
ENTRYPOINT ["/usr/local/bin/weft"]
CMD ["--help"]
