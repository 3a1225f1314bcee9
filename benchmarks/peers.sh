#!/bin/sh
# Makes .venv-peers: all that Convoy needs, and the libraries that benchmarks compare it with. 8 GB, of no use otherwise.
#
#     benchmarks/peers.sh && PYTHONPATH=. .venv-peers/bin/python benchmarks/stream.py ARCHIVE
#
# torchvision is built against torch's CUDA build and does not import beside the CPU build; that build runs on a CPU.
# The third "=" refuses the local version "+cpu".
set -eu
cd "$(dirname "$0")/.."
"${PYTHON:-python3.11}" -m venv .venv-peers
pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
sed 's/^torch==/torch===/' requirements.lock > "$pins"
.venv-peers/bin/pip install -r "$pins" torchvision===0.28.0 kornia==0.8.3 faster-coco-eval==1.8.0
.venv-peers/bin/pip install --no-deps pytorch-metric-learning==2.9.0  # asks for torch and scikit-learn: they are there
# albumentations asks for OpenCV's headless build by a range that pip resolves to another numpy: it needs none of it.
.venv-peers/bin/pip install --no-deps albumentations==2.0.8 albucore==0.0.24 opencv-python-headless stringzilla simsimd
