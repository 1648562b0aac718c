#!/usr/bin/env bash
# Runs on the machine with the GPU: unpacks what pack.sh made, which lies beside this file, and begins the visit.
#   OUT=DIR bash trip.sh MINUTES [--groups machine,small,…]
set -u
here=$(cd "$(dirname "$0")" && pwd)
began=$SECONDS
minutes=$1; shift
site=${TRIAL_SITE:-/tmp/site}
export TRIAL_REPO=${TRIAL_REPO:-/tmp/product}
unpack() { # there may be no xz
  mkdir -p "$2" && { tar -xJf "$1" -C "$2" 2>/dev/null || python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$1" "$2"; }
}
[ ! -f "$here/site.tar.xz" ] || unpack "$here/site.tar.xz" "$site" &
unpack "$here/product.tar.xz" "$TRIAL_REPO" || exit
[ ! -f "$here/material.tar.xz" ] || unpack "$here/material.tar.xz" / # made before the visit: rows, tokens, a small model
wait
python3 -m compileall -q -j 0 "$site" "$TRIAL_REPO" >"$OUT/compiled.txt" 2>&1 # else every process compiles for itself
rm -f "$OUT/compiled.txt"
export PYTHONPATH=$TRIAL_REPO:$site HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
# transformers' Trainer imports datasets where it is found: one for another pyarrow would end every stage.
python3 -c 'import datasets' 2>"$OUT/datasets.txt" || {
  tail -1 "$OUT/datasets.txt"; echo "left out: datasets, and with it DPO"
  rm -rf "$site"/datasets "$site"/datasets-*
}
rm -f "$OUT/datasets.txt"
python3 -c 'import transformers.trainer, peft, msgspec, pydantic, bitsandbytes' 2>&1 | tail -3
echo "ready after $((SECONDS - began)) s"
cd "$TRIAL_REPO" && exec python3 -m bench.gpu --minutes "$minutes" --out "$OUT" "$@" 2>&1
