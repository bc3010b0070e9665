"""gRPC's own xDS client: grpc_xds_client.py TARGET. For every line on stdin makes a call and prints the answer."""
import sys

import grpc

channel = grpc.insecure_channel("xds:///" + sys.argv[1])
call = channel.unary_unary("/test.Echo/Say")
for _ in sys.stdin:
    try:
        print(call(b"", wait_for_ready=True, timeout=15).decode(), flush=True)
    except grpc.RpcError as error:
        print("error", error.code(), error.details(), flush=True)
