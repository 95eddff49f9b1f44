#!/usr/bin/env bash
# Generates the Go of the contract into gen/, or into the folder that is named. The versions of the two
# generators are those of go.mod; `protoc` is on PATH or is what PROTOC says, in this repository
# PROTOC="../../../../.venv/bin/python -m grpc_tools.protoc".
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-gen}
protos=../../../../proto
files=(patchbay/type/v1/{annotations,error,headers,secret,usage}.proto
  patchbay/host/v1/{auth,host,http,log,model}.proto
  patchbay/plugin/v1/{executor,identifier,plugin,stream_chunk_interceptor}.proto)

# The contract names no language, so what it imports must be told where it lies.
options=(paths=source_relative)
for file in "${files[@]}"; do
  options+=("M$file=patchbay.dev/examples/relay-go/gen/$(dirname "$file")")
done
joined=$(IFS=,; echo "${options[*]}")

mkdir -p "$out"
${PROTOC:-protoc} -I "$protos" \
  --plugin=protoc-gen-go="$(go tool -n protoc-gen-go)" \
  --plugin=protoc-gen-go-grpc="$(go tool -n protoc-gen-go-grpc)" \
  --go_out="$out" --go_opt="$joined" --go-grpc_out="$out" --go-grpc_opt="$joined" "${files[@]}"
