"""A gRPC server that answers every unary call with its own name: grpc_echo.py NAME. Prints its port."""
import sys
import time
from concurrent import futures

import grpc


class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: sys.argv[1].encode())


server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Echo()])
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
while True:
    time.sleep(60)
