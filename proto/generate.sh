#!/usr/bin/env bash
# Generates the committed Python of the contract into services/sdk. `make proto` runs it.
# The generator is pinned to the oldest runtime that the SDK promises (proto/gen-requirements.txt):
# code from a newer one refuses older protobuf and grpcio at import.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/services/sdk}
bin=${PATCHBAY_VENV:-$root/.venv}/bin
cd "$root/proto"
mapfile -t files < <(find patchbay -name '*.proto' | LC_ALL=C sort)
"$bin/python" -m grpc_tools.protoc -I . \
  --plugin=protoc-gen-mypy="$bin/protoc-gen-mypy" --plugin=protoc-gen-mypy_grpc="$bin/protoc-gen-mypy_grpc" \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="readable_stubs:$out" --mypy_grpc_out="readable_stubs:$out" \
  "${files[@]}"
find "$out/patchbay" -path '*/v1' -type d | while read -r dir; do
  touch "$dir/__init__.py" "$(dirname "$dir")/__init__.py"
done
# Files without a service get an empty grpc module; they say nothing.
for f in "${files[@]}"; do
  grep -q '^service ' "$f" || rm -f "$out/${f%.proto}_pb2_grpc.py" "$out/${f%.proto}_pb2_grpc.pyi"
done
