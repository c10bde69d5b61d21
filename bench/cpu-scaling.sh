#!/usr/bin/env bash
# The CPU's layer by cores, without Maven: CpuTimes for each number of cores, in pure Java and, where oneDNN's jar is on the class path and the processor
# has int8 instructions, with oneDNN; and a peer in the same run.
#
#   CP=CLASSES:JARS [GGML=ggml_moe] [CORES="1 2 4 8 16"] [SECONDS_EACH=2] [SHAPES="16:768:2048:2 128:768:2048:8"] bench/cpu-scaling.sh OUT.jsonl
#
# CP has the library's and this module's classes and what they need (bench/README.md). GGML is a program that prints "... M=1 median 0.357 ms ..." lines when
# called with E H I K THREADS SECONDS.
set -euo pipefail
out=${1:?expected a file for the lines}
java=${JAVA_HOME:+$JAVA_HOME/bin/}java
for shape in ${SHAPES:-16:768:2048:2 128:768:2048:8}; do
  IFS=: read -r e i h k <<<"$shape"
  for cores in ${CORES:-1 2 4 8 16}; do
    for arithmetic in vectors auto; do
      "$java" -Xmx2g -XX:MaxDirectMemorySize=12g -XX:ActiveProcessorCount="$cores" -Dtornadomoe.arithmetic=$arithmetic \
        --add-modules jdk.incubator.vector --enable-native-access=ALL-UNNAMED -cp "$CP" org.tornadomoe.bench.CpuTimes \
        --shape "$shape" --seconds "${SECONDS_EACH:-2}" --output "$out" ${TIMES:-}
    done
    if [ -n "${GGML:-}" ]; then
      "$GGML" "$e" "$h" "$i" "$k" "$cores" "${SECONDS_EACH:-2}" | sed -n 's/.* M=\([0-9]*\) median \([0-9.]*\) ms.*/\1 \2/p' |
        while read -r m ms; do
          echo "{\"shape\":\"$shape\",\"scheme\":\"q8_0\",\"device\":\"ggml ($cores threads)\",\"layers\":1,\"tokens\":$m,\"ms\":$ms}" | tee -a "$out"
        done
    fi
  done
done
