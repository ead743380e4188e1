"""An S3-like store on loopback, run by the Python that moto is installed for; logs its port.

One request at a time: moto looks whether an object exists and then stores it, so that requests side
by side could both find nothing.
"""

from moto.server import create_backend_app
from werkzeug.serving import make_server

if __name__ == "__main__":
    server = make_server("127.0.0.1", 0, create_backend_app("s3"))
    print(f"Listening on port {server.server_port}.", flush=True)
    server.serve_forever()
