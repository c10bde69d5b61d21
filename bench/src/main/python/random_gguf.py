"""random_gguf.py FILE: random:small of examples/language-model as a GGUF file for llama-bench, Q8_0, random numbers."""

import struct
import sys

import numpy as np

L, E, K, H, I, HEADS, KV, D, V = 16, 16, 2, 2048, 768, 16, 4, 128, 32000
F32, Q8_0 = 0, 8


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def entry(key, value):
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    kind, number = ("I", 4) if isinstance(value, int) else ("f", 6)
    return text(key) + struct.pack("<I" + kind, number, value)


sizes = dict(block_count=L, context_length=4096, embedding_length=H, feed_forward_length=I, expert_count=E,
             expert_used_count=K, expert_feed_forward_length=I, vocab_size=V)
sizes |= {"attention.head_count": HEADS, "attention.head_count_kv": KV, "attention.key_length": D,
          "attention.value_length": D, "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 1e4}
fields = {"general.architecture": "qwen3moe", "tokenizer.ggml.model": "none"}
fields |= {"qwen3moe." + key: value for key, value in sizes.items()}
tensors = [("token_embd", [H, V], Q8_0), ("output", [H, V], Q8_0), ("output_norm", [H], F32)]
for layer in range(L):
    tensors += [(f"blk.{layer}.{name}", dims, kind) for name, dims, kind in [
        ("attn_norm", [H], F32), ("attn_q", [H, HEADS * D], Q8_0), ("attn_k", [H, KV * D], Q8_0),
        ("attn_v", [H, KV * D], Q8_0), ("attn_output", [HEADS * D, H], Q8_0), ("attn_q_norm", [D], F32),
        ("attn_k_norm", [D], F32), ("ffn_norm", [H], F32), ("ffn_gate_inp", [H, E], F32),
        ("ffn_gate_exps", [H, I, E], Q8_0), ("ffn_up_exps", [H, I, E], Q8_0), ("ffn_down_exps", [I, H, E], Q8_0)]]

random = np.random.default_rng(1)
blocks = np.zeros((1 << 16, 34), np.uint8)
blocks[:, 2:] = random.integers(0, 256, (1 << 16, 32), dtype=np.uint8)
blocks[:, :2] = np.frombuffer(np.float16(1 / (73 * 45)).tobytes(), np.uint8)
blocks = blocks.tobytes()
infos, offset = b"", 0
for name, dims, kind in tensors:
    infos += text(name + ".weight") + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    count = int(np.prod(dims))
    offset += -(-(4 * count if kind == F32 else count // 32 * 34) // 32) * 32
with open(sys.argv[1], "wb") as out:
    out.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields)))
    out.write(b"".join(entry(key, value) for key, value in fields.items()) + infos)
    out.write(b"\0" * (-out.tell() % 32))
    for name, dims, kind in tensors:
        count = int(np.prod(dims))
        if kind == F32:
            values = 0.05 * (2 * random.random(count) - 1) if "gate_inp" in name else np.ones(count)
            out.write(values.astype(np.float32).tobytes())
        else:
            left = count // 32 * 34
            while left:
                out.write(blocks[: min(left, len(blocks))])
                left -= min(left, len(blocks))
        out.write(b"\0" * (-out.tell() % 32))
