#!/bin/sh
# Tells Spark this machine's GPUs: spark.worker.resource.gpu.discoveryScript, or on YARN and Kubernetes
# spark.executor.resource.gpu.discoveryScript. The addresses are the numbers that CUDA gives them.
addresses=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | sed 's/.*/"&"/' | paste -s -d , -)
printf '{"name": "gpu", "addresses": [%s]}\n' "$addresses"
