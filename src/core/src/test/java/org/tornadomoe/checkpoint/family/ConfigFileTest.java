package org.tornadomoe.checkpoint.family;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.JsonFile;

class ConfigFileTest {
    @TempDir
    Path directory;

    private JsonFile params(String json) throws IOException {
        Files.writeString(directory.resolve("params.json"), json.replace('\'', '"'));
        return ConfigFile.of(directory);
    }

    @Test
    void configJsonCountsFirst() throws IOException {
        assertThat(ConfigFile.isIn(directory)).isFalse();
        Files.writeString(directory.resolve("config.json"), "{\"model_type\": \"mixtral\"}");
        assertThat(params("{'moe': {'num_experts': 8}}").fields()).isEqualTo(Map.of("model_type", "mixtral"));
        assertThat(ConfigFile.isIn(directory)).isTrue();
    }

    @Test
    void mistralsOwnIsReadAsConfigJson() throws IOException {
        JsonFile mixtral = params("{'dim': 4096, 'n_layers': 32, 'hidden_dim': 14336, 'moe': {'num_experts': 8,"
                + " 'num_experts_per_tok': 2}}");
        assertThat(mixtral.string("model_type")).isEqualTo("mixtral");
        assertThat(mixtral.integer("num_local_experts")).isEqualTo(8);
        assertThat(mixtral.integer("intermediate_size")).isEqualTo(14336);
        JsonFile large = params(
                "{'dim': 7168, 'n_layers': 61, 'hidden_dim': 16384, 'moe': {'num_experts': 128, 'num_experts_per_tok':"
                        + " 4, 'expert_hidden_dim': 4096, 'num_shared_experts': 1, 'expert_parallel': 1},"
                        + " 'quantization': {'qformat_weight': 'fp8_e4m3'}}");
        assertThat(large.string("model_type")).isEqualTo("mistral4");
        assertThat(large.integer("moe_intermediate_size")).isEqualTo(4096);
        assertThat(large.object("quantization_config")).isEqualTo(Map.of("quant_method", "fp8"));
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '`',
            value = {
                "'dim': 8 | has no 'moe': the model has no experts",
                "'moe': {'num_experts': 8, 'temperature': 2} | 'moe.temperature': not known",
                "'moe': {'expert_hidden_dim': 8, 'num_expert_groups': 4} | 'num_expert_groups': expected 1",
                "'moe': {'num_experts': 8}, 'quantization': {'qformat_weight': 'int3'} | 'qformat_weight': expected"
                        + " fp8_e4m3, got int3",
            })
    void whatIsNotKnownIsRefused(String fields, String message) {
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> params("{" + fields + "}"))
                .withMessageContaining(message);
    }
}
