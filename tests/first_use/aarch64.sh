#!/usr/bin/env bash
# aarch64.sh: from nothing to a 64-bit Arm program that runs under emulation, in five commands.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ((EUID != 0)) || [[ $(dpkg --print-architecture) == arm64 ]]; then apt-get() { true; }; fi

apt-get install -qq cmake g++-aarch64-linux-gnu libcli11-dev libhwy-dev ninja-build qemu-user
cmake --preset aarch64
cmake --build --preset aarch64 --target groupnorm_cli
emulated="qemu-aarch64 -L /usr/aarch64-linux-gnu build/aarch64/tools/groupnorm"
$emulated check group/f32/first/16x32x64x64
$emulated run data/mr_head.npy --groups 6 --report -o build/mr_head_aarch64.npy
