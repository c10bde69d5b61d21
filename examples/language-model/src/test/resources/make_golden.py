"""Makes the tiny checkpoints in this folder, and what transformers computes of them. Random weights, nothing published.

    pip install torch transformers==5.17.0; python make_golden.py

The weights of all matrices are whole numbers of -127 to 127 times a power of two, a row's own, and each row has a 127:
int8 holds them exactly, and so does bfloat16. `*-plain` has plain normal weights. The GGUF files hold the same weights
under llama.cpp's names, written here, since llama.cpp's converter wants real tokenizers.
"""

import json
import os
import struct
import sys

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (AutoModelForCausalLM, MixtralConfig, OlmoeConfig, PreTrainedTokenizerFast, Qwen3MoeConfig)

HERE = os.path.dirname(os.path.abspath(__file__))
PROMPT, STEPS = 19, 32

TEXT = """A mixture of experts has many feed-forward networks, and a router that sends each token to a few of them.
The experts that a token isn't sent to cost nothing but memory. Eight experts of one hundred and twenty-eight, say,
are those of the token "token"; the next token has eight others. It's the router's choice, and it isn't even."""

CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>'"
          " + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
TULU = ("{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] }}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}")
MISTRAL = ("{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
           "{{ ' [INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}"
           "{% endif %}{% endfor %}")
# As Qwen2's files have it, and GPT-NeoX's.
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_level(kind, specials):
    tokenizer = Tokenizer(models.BPE())
    if kind == "qwen2":
        from tokenizers import Regex
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=288 - len(specials), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in specials])
    return tokenizer


def sentencepiece():
    """As Llama's and Mistral's: a BPE over characters, unknown ones as bytes."""
    specials = ["<unk>", "<s>", "</s>"]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)
    trained.train_from_iterator(TEXT.split("\n"), trainers.BpeTrainer(vocab_size=80, show_progress=False))
    state = json.loads(trained.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in state["merges"]]
    vocab = {}
    for each in specials + [f"<0x{b:02X}>" for b in range(256)]:
        vocab[each] = len(vocab)
    characters = sorted(t for t in state["vocab"] if len(t) == 1)
    merged = ["".join(m) for m in merges]
    room = 384 - len(vocab) - len(characters)
    for each in merged[:room] + characters:
        vocab[each] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges[:room], unk_token="<unk>", fuse_unk=True,
                                     byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(each, special=True, normalized=False) for each in specials])
    from tokenizers.processors import TemplateProcessing
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return tokenizer, len(characters)


SIZES = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256,
             initializer_range=0.05, torch_dtype="bfloat16")
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
FAMILIES = {
    "qwen3_moe": lambda v: Qwen3MoeConfig(
        **SIZES, vocab_size=v, num_key_value_heads=2, head_dim=32, num_experts=8, num_experts_per_tok=3,
        moe_intermediate_size=32, intermediate_size=64, norm_topk_prob=True, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "olmoe": lambda v: OlmoeConfig(
        **SIZES, vocab_size=v, num_key_value_heads=4, num_experts=8, num_experts_per_tok=2, intermediate_size=32,
        norm_topk_prob=False, tie_word_embeddings=True, rms_norm_eps=1e-5),
    "mixtral": lambda v: MixtralConfig(
        **SIZES, vocab_size=v, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        intermediate_size=32, tie_word_embeddings=False, sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
}


def exact(weight, rng, std):
    """Whole numbers times a power of two, near the wanted standard deviation; a 127 in each row."""
    q = rng.integers(-127, 128, weight.shape)
    np.put_along_axis(q, rng.integers(0, weight.shape[-1], weight.shape[:-1] + (1,)), 127, -1)
    exponent = np.floor(np.log2(std / 73)) + rng.integers(0, 2, weight.shape[:-1] + (1,))
    return torch.from_numpy((q * 2.0 ** exponent).astype(np.float32))


def fill(model, rng, plain):
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                value = torch.from_numpy(rng.uniform(0.7, 1.3, weight.shape).astype(np.float32)).bfloat16().float()
            else:
                std = 1.0 if "embed" in name else 1.6 / weight.shape[-1] ** 0.5
                if "lm_head" in name:
                    std *= 2
                value = (torch.from_numpy(rng.normal(0, std, weight.shape).astype(np.float32)).bfloat16().float()
                         if plain else exact(weight, rng, std))
            weight.copy_(value)


def run(model, prompt):
    """Logits of the prompt in one pass, then of each greedy token but the last with the cache."""
    with torch.no_grad():
        out = model(prompt[None], use_cache=True)
        logits, tokens = [out.logits[0]], []
        for _ in range(STEPS):
            tokens.append(int(logits[-1][-1].argmax()))
            if len(tokens) < STEPS:
                out = model(torch.tensor([[tokens[-1]]]), past_key_values=out.past_key_values, use_cache=True)
                logits.append(out.logits[0])
        logits = torch.cat(logits)
        top = logits[PROMPT - 1:].topk(2).values
        margin = float(((top[:, 0] - top[:, 1]) / logits[PROMPT - 1:].std(-1)).min())
    return logits, tokens, margin


def tokenizer_of(family):
    if family == "mixtral":
        tokenizer, characters = sentencepiece()
        return tokenizer, dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True), MISTRAL
    if family == "olmoe":
        return (byte_level("gpt2", ["<|endoftext|>", "<|padding|>"]),
                dict(bos_token="<|endoftext|>", eos_token="<|endoftext|>", add_bos_token=False), TULU)
    return byte_level("qwen2", SPECIALS), dict(bos_token=None, eos_token="<|im_end|>", add_bos_token=False), CHATML


GGUF = {"qwen3_moe": "qwen3moe", "olmoe": "olmoe", "mixtral": "llama"}


def gguf(family, model, tokenizer, special, template, path):
    config, name = model.config, GGUF[family]
    tensors, meta = {}, {}
    heads, kv = config.num_attention_heads, config.num_key_value_heads

    def permute(w, n):  # llama.cpp's order of a head's rows for that architecture: pairs side by side
        return w.reshape(n, 2, w.shape[0] // n // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)

    renamed = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
               "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
               "self_attn.k_norm": "attn_k_norm", "input_layernorm": "attn_norm",
               "post_attention_layernorm": "ffn_norm", "mlp.gate": "ffn_gate_inp", "mlp.router": "ffn_gate_inp",
               "block_sparse_moe.gate": "ffn_gate_inp"}
    for key, weight in model.state_dict().items():
        w = weight.float().numpy()
        if key == "model.embed_tokens.weight":
            tensors["token_embd.weight"] = w
        elif key == "model.norm.weight":
            tensors["output_norm.weight"] = w
        elif key == "lm_head.weight":
            if not config.tie_word_embeddings:
                tensors["output.weight"] = w
        else:
            layer, rest = key[len("model.layers."):].split(".", 1)
            if rest.endswith("experts.gate_up_proj"):
                half = w.shape[1] // 2
                tensors[f"blk.{layer}.ffn_gate_exps.weight"] = w[:, :half]
                tensors[f"blk.{layer}.ffn_up_exps.weight"] = w[:, half:]
            elif rest.endswith("experts.down_proj"):
                tensors[f"blk.{layer}.ffn_down_exps.weight"] = w
            else:
                own = renamed[rest[:-len(".weight")]]
                if name == "llama" and own in ("attn_q", "attn_k"):
                    w = permute(w, heads if own == "attn_q" else kv)
                tensors[f"blk.{layer}.{own}.weight"] = w
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    tokens = [token for token, _ in vocab]
    state = json.loads(tokenizer.to_str())
    specials = {each["content"] for each in state["added_tokens"]}
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["model"]["merges"]]
    meta["general.architecture"] = name
    for key, value in {"block_count": config.num_hidden_layers, "context_length": config.max_position_embeddings,
                       "embedding_length": config.hidden_size, "attention.head_count": heads,
                       "attention.head_count_kv": kv, "expert_count": config.num_local_experts
                       if family == "mixtral" else config.num_experts,
                       "expert_used_count": config.num_experts_per_tok,
                       "feed_forward_length": config.intermediate_size,
                       "expert_feed_forward_length": 32}.items():
        meta[f"{name}.{key}"] = int(value)
    meta[f"{name}.attention.layer_norm_rms_epsilon"] = float(config.rms_norm_eps)
    meta[f"{name}.rope.freq_base"] = float(config.rope_parameters["rope_theta"])
    if family == "qwen3_moe":
        meta[f"{name}.attention.key_length"] = config.head_dim
        meta[f"{name}.attention.value_length"] = config.head_dim
    meta["tokenizer.ggml.tokens"] = tokens
    if family == "mixtral":
        meta["tokenizer.ggml.model"] = "llama"
        meta["tokenizer.ggml.scores"] = [0.0 if i < 259 else -float(i - 259) for i in range(len(tokens))]
        meta["tokenizer.ggml.token_type"] = [2 if i == 0 else 3 if i < 3 else 6 if i < 259 else 1
                                             for i in range(len(tokens))]
    else:
        meta["tokenizer.ggml.model"] = "gpt2"
        meta["tokenizer.ggml.pre"] = "qwen2" if family == "qwen3_moe" else "olmo"
        meta["tokenizer.ggml.merges"] = merges
        meta["tokenizer.ggml.token_type"] = [3 if t in specials else 1 for t in tokens]
    for key in ("bos", "eos"):
        if special.get(f"{key}_token"):
            meta[f"tokenizer.ggml.{key}_token_id"] = tokens.index(special[f"{key}_token"])
    meta["tokenizer.ggml.add_bos_token"] = special["add_bos_token"]
    meta["tokenizer.chat_template"] = template

    def text(s):
        data = s.encode()
        return struct.pack("<Q", len(data)) + data

    def value(v):
        if isinstance(v, bool):
            return struct.pack("<I?", 7, v)
        if isinstance(v, int):
            return struct.pack("<II", 4, v)
        if isinstance(v, float):
            return struct.pack("<If", 6, v)
        if isinstance(v, str):
            return struct.pack("<I", 8) + text(v)
        kind, form = (8, None) if isinstance(v[0], str) else (6, "<f") if isinstance(v[0], float) else (5, "<i")
        return struct.pack("<IIQ", 9, kind, len(v)) + b"".join(
            text(each) if form is None else struct.pack(form, each) for each in v)

    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(meta))
    head += b"".join(text(k) + value(v) for k, v in meta.items())
    data = b""
    for key, w in tensors.items():
        bf16 = w.ndim > 1 and "ffn_gate_inp" not in key
        head += text(key) + struct.pack("<I", w.ndim) + b"".join(struct.pack("<Q", d) for d in reversed(w.shape))
        head += struct.pack("<IQ", 30 if bf16 else 0, len(data))
        data += (torch.from_numpy(np.ascontiguousarray(w)).bfloat16().view(torch.int16).numpy().tobytes() if bf16
                 else np.ascontiguousarray(w).astype("<f4").tobytes())
        data += b"\0" * (-len(data) % 32)
    head += b"\0" * (-len(head) % 32)
    with open(path, "wb") as f:
        f.write(head + data)


def main():
    only = sys.argv[1:]
    for family, make in FAMILIES.items():
        for plain in (False, True) if family == "qwen3_moe" else (False,):
            folder = os.path.join(HERE, family + ("-plain" if plain else ""))
            if only and os.path.basename(folder) not in only:
                continue
            tokenizer, special, template = tokenizer_of(family)
            config = make(tokenizer.get_vocab_size())
            config._attn_implementation = "eager"
            config.eos_token_id = tokenizer.token_to_id(special["eos_token"])
            config.bos_token_id = tokenizer.token_to_id(special["bos_token"]) if special["bos_token"] else None
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
            best = None
            for seed in range(40):  # that with the clearest choices
                rng = np.random.default_rng(seed)
                fill(model, rng, plain)
                prompt = torch.from_numpy(rng.integers(0, config.vocab_size, PROMPT))
                logits, tokens, margin = run(model, prompt)
                if best is None or margin > best[0]:
                    best = margin, seed
            rng = np.random.default_rng(best[1])
            fill(model, rng, plain)
            prompt = torch.from_numpy(rng.integers(0, config.vocab_size, PROMPT))
            logits, tokens, margin = run(model, prompt)
            os.makedirs(folder, exist_ok=True)
            model.bfloat16().save_pretrained(folder)
            for extra in ("generation_config.json",):
                if os.path.exists(os.path.join(folder, extra)):
                    os.remove(os.path.join(folder, extra))
            fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False,
                                           **{k: v for k, v in special.items() if k.endswith("_token") and
                                              isinstance(v, str)})
            fast.chat_template = template
            tokenizer.save(os.path.join(folder, "tokenizer.json"), pretty=False)
            chat = [{"role": "user", "content": "Which expert?"}, {"role": "assistant", "content": "The third."},
                    {"role": "user", "content": "It's gone."}]
            with open(os.path.join(folder, "tokenizer_config.json"), "w") as f:
                json.dump({k: v for k, v in special.items()} | {"chat_template": template}, f, indent=1)
            texts = ["The router's choice: 128 experts, 8 of them.\n\n  Said  caf\u00e9, \u4e13\u5bb6 \U0001f642!",
                     "token", " a\tb", "It's THE end"]
            rendered = fast.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            with open(os.path.join(folder, "golden.json"), "w") as f:
                json.dump({"margin": margin, "seed": best[1],
                           "texts": [{"text": t, "ids": tokenizer.encode(t).ids,
                                      "decoded": tokenizer.decode(tokenizer.encode(t).ids)} for t in texts],
                           "chat": chat, "rendered": rendered,
                           "chat_ids": tokenizer.encode(rendered, add_special_tokens=False).ids}, f, indent=1)
            save_file({"prompt": prompt.int(), "greedy": torch.tensor(tokens, dtype=torch.int32),
                       "logits": logits.contiguous()}, os.path.join(folder, "golden.safetensors"))
            if not plain and family != "olmoe":
                gguf(family, model, tokenizer, special, template, os.path.join(folder, "model.gguf"))
            print(folder, "vocabulary", config.vocab_size, "margin", margin, "seed", best[1], "std", float(logits.std()))


main()
