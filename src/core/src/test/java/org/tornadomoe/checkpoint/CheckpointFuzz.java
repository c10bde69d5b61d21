package org.tornadomoe.checkpoint;

import com.code_intelligence.jazzer.junit.DictionaryEntries;
import com.code_intelligence.jazzer.junit.FuzzTest;
import java.nio.file.Path;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.io.TempDir;

/**
 * Makes up files for {@link FuzzTarget}, with Jazzer. It begins with the inputs that are kept, learns which bytes lead
 * to new branches, and keeps what fails among them, for {@link CheckpointFuzzTest}. Its name keeps it out of the build,
 * since Jazzer rewrites every class that is loaded after it; one target at a time:
 *
 * <pre>{@code JAZZER_FUZZ=1 ./mvnw test -Dtest=CheckpointFuzz#gguf}</pre>
 */
@Tag("hot")
class CheckpointFuzz {
    @TempDir
    static Path directory;

    @FuzzTest(maxDuration = "15m")
    @DictionaryEntries({"dtype", "shape", "data_offsets", "__metadata__", "F32", "BF16", "F16", "I8", "I32", "I64"})
    void safetensors(byte[] input) {
        FuzzTarget.SAFETENSORS.run(input, directory);
    }

    @FuzzTest(maxDuration = "15m")
    @DictionaryEntries({
        "GGUF",
        "general.architecture",
        "general.alignment",
        "split.count",
        "deepseek2.",
        "qwen3moe.",
        "block_count",
        "expert_count",
        "expert_used_count",
        "expert_weights_norm",
        "blk.0.ffn_gate_exps.weight",
        ".scale",
        ".bias"
    })
    void gguf(byte[] input) {
        FuzzTarget.GGUF.run(input, directory);
    }

    @FuzzTest(maxDuration = "15m")
    @DictionaryEntries({
        "model_type",
        "num_hidden_layers",
        "hidden_size",
        "num_experts_per_tok",
        "quantization_config",
        "group_size",
        "config_groups",
        "targets",
        "ignore",
        "re:",
        "dynamic",
        "strategy",
        "2147483647",
        "-1",
        "1e400",
        "NaN",
        "null",
        "text_config",
        "scoring_func",
        "hidden_act",
        "moe_intermediate_size"
    })
    void config(byte[] input) {
        FuzzTarget.CONFIG.run(input, directory);
    }

    @FuzzTest(maxDuration = "15m")
    @DictionaryEntries({"weight_map", "metadata", "a.safetensors", "b.safetensors", "..", "/", "\\", "\0", "null"})
    void index(byte[] input) {
        FuzzTarget.INDEX.run(input, directory);
    }
}
