#!/usr/bin/env bash
# Packs for a machine with one NVIDIA GPU, Python 3.12, a torch for CUDA 13 and no network: pack.sh DEST [COMMIT]
#   DEST/site.tar.xz: the packages of constraints.txt that such a machine lacks, and Liger's kernels; bitsandbytes with its
#   library for CUDA 13 only, which is a tenth of its wheel. DEST/product.tar.xz: this checkout at COMMIT, without tests.
# PIP names a client that can install for Python 3.12 (default: python3 -m pip). It needs unzip and xz.
set -euo pipefail
PIP=${PIP:-python3 -m pip}
dest=$(mkdir -p "${1:?usage: pack.sh DEST [COMMIT]}" && cd "$1" && pwd)
root=$(cd "$(dirname "$0")/../.." && pwd)
names="accelerate annotated-types bitsandbytes click datasets dill fsspec gguf hf-xet httpcore2 httpx2 huggingface_hub msgspec
  multiprocess nvidia-ml-py peft protobuf psutil pydantic pydantic_core rensa rich safetensors sentencepiece tokenizers
  transformers trl truststore typing-inspection typing_extensions xllamacpp xxhash"
wanted="liger-kernel==${LIGER:-0.6.4}"
for name in $names; do wanted+=" $(grep -i "^$name==" "$root/constraints.txt")"; done
target="--only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none"
for n in 39 38 37 36 35 34 33 32 31 28 27 24 17; do target+=" --platform manylinux_2_${n}_x86_64"; done
for n in 2014 2010 1; do target+=" --platform manylinux${n}_x86_64"; done
if [ ! -f "$dest/site.tar.xz" ]; then
  wheels=$(mktemp -d) work=$(mktemp -d)
  trap 'rm -rf "$wheels" "$work"' EXIT
  # shellcheck disable=SC2086
  $PIP download -q --no-deps $target -d "$wheels" $wanted
  for wheel in "$wheels"/*.whl; do unzip -q -o "$wheel" -d "$work"; done
  find "$work" -type d -name tests -prune -exec rm -rf {} +
  find "$work/bitsandbytes" -name 'libbitsandbytes_*' ! -name '*cuda130*' ! -name '*_cpu*' -delete
  tar -C "$work" -cf - . | xz -6 -T0 >"$dest/site.tar.xz"
fi
git -C "$root" archive "${2:-HEAD}" bench cockpit engines exporters recipes docs pyproject.toml | xz -6 >"$dest/product.tar.xz"
cp "$(dirname "$0")/trip.sh" "$dest"
du -b "$dest"/*.tar.xz
