"""Packaging. kernels/ stands at the top of the tree but installs as psychecore.kernels (README, Layout).

A distribution named `kernels` exists, so a top-level module of that name would be someone else's for somebody.
Ranges are what the code needs; constraints.txt holds the versions that it is tested with.
"""

from setuptools import find_packages, setup

GGUF = "gguf>=0.17"
DATASKETCH = "datasketch>=1.6"
# What the open answers of PCEB are scored with, and what the tests of that compare with.
EVAL = ["jieba>=0.42", "nltk>=3.8", "rouge-chinese>=1.0.3"]
# An oracle in tests and a peer in benchmarks, never imported by psychecore; 4.51 is the first with Qwen3.
TRANSFORMERS = "transformers>=4.51"

EXTRAS = {
    "demo": [DATASKETCH, GGUF],
    "test": [
        "bandit>=1.8",
        DATASKETCH,
        *EVAL,
        GGUF,
        "hypothesis>=6.100",
        "mypy>=1.10",
        "pytest>=8",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.5",
        "ruff>=0.6",
        "selenium>=4.30",  # drives Debian's chromium over the pages of psychecore/curate; those tests skip without it
        "setuptools>=77",  # a fresh .venv has none from Python 3.12 on, and tests/test_packaging.py builds a wheel
        TRANSFORMERS.replace("transformers", "transformers[serving]"),  # its server: tests/curate/test_real_server.py
        "triton>=3.4; platform_system == 'Linux'",  # the interpreter tests need it where torch is a CPU build
    ],
    "eval": EVAL,
    "curate": [DATASKETCH],
    "report": ["tensorboard>=2.16"],
    "bench": [GGUF, "llama-cpp-python>=0.3", TRANSFORMERS, "trl>=0.20"],
    "flash": ["flash-attn>=2.8"],
}

setup(
    name="psychecore",
    version="0.1.0",
    description="Psyche-R1 in plain PyTorch: SFT and GRPO for psychological language models, no trainer framework",
    python_requires=">=3.11",
    packages=[*find_packages(include=["psychecore", "psychecore.*"]), "psychecore.kernels"],
    package_dir={"psychecore.kernels": "kernels"},
    package_data={"psychecore": ["py.typed", "curate/*.html", "report/*.html"]},
    install_requires=[
        "torch>=2.7",
        "huggingface-hub>=0.30",
        "jinja2>=3.1",
        "numpy>=1.26",
        "safetensors>=0.4.3",
        "tokenizers>=0.21",
        "tqdm>=4.66",
    ],
    extras_require=EXTRAS,
)
