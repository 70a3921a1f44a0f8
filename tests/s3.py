"""An S3 server on this machine, for tests of URLs."""

import contextlib
import os
import urllib.request

import pytest

_RUNNING = []


def _forget():
    """Lets drivers that know another server be made anew."""
    import s3fs

    from odvae_jax.data import urls

    urls._system.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


@contextlib.contextmanager
def server():
    """Starts a server with one bucket, which is empty; yields the bucket's URL.

    Within, this process and those that it starts find the server where they look for Amazon's.
    """
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    _RUNNING.append(running)
    host, port = running.get_host_and_port()
    given = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    given |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    before = {name: os.environ.get(name) for name in given}
    os.environ |= given
    _forget()
    reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()  # servers of one process share what they hold
    try:
        import s3fs

        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
        yield "s3://bucket"
    finally:
        _forget()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        _RUNNING.pop().stop()


@contextlib.contextmanager
def away():
    """Within, the server that was started last cannot be reached; afterwards it has all it had."""
    host, port = _RUNNING[-1].get_host_and_port()
    _RUNNING[-1].stop()
    try:
        yield
    finally:
        from moto.server import ThreadedMotoServer

        _RUNNING[-1] = ThreadedMotoServer(ip_address=host, port=port, verbose=False)
        _RUNNING[-1].start()
