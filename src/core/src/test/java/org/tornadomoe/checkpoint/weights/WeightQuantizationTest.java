package org.tornadomoe.checkpoint.weights;

import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.JsonFile;

/** What config.json says of how modules are stored. */
class WeightQuantizationTest {
    private static final String ROUTED = "model.layers.3.mlp.experts.7.up_proj";
    private static final String SHARED = "model.layers.3.mlp.shared_expert.up_proj";
    private static final String INT8 = "'weights': {'num_bits': 8, 'type': 'int', 'strategy': 'channel'}";
    private static final String INT4 = "'weights': {'num_bits': 4, 'type': 'int', 'strategy': 'channel'}";
    private static final String GPTQ =
            "{'quant_method': 'gptq', 'bits': 8, 'group_size': 32, 'sym': true, 'desc_act': false";

    @TempDir
    Path directory;

    private @Nullable WeightQuantization of(String config) throws IOException {
        return QuantizationConfig.of(
                JsonFile.read(Files.writeString(directory.resolve("config.json"), config.replace('\'', '"'))));
    }

    private WeightQuantization quantization(String json) throws IOException {
        return requireNonNull(of("{'quantization_config': " + json + "}"));
    }

    /** @param groups name, targets and arguments */
    private WeightQuantization groups(String groups, String rest) throws IOException {
        return quantization("{'quant_method': 'compressed-tensors', 'config_groups': {" + groups + "}" + rest + "}");
    }

    private static int bits(WeightQuantization quantization, String module) {
        WeightQuantization.Group group = quantization.groupOf(module);
        return group == null ? 0 : group.weights().bits();
    }

    private void assertRefused(String config, String message) {
        assertThatExceptionOfType(CheckpointException.class)
                .as(config)
                .isThrownBy(() -> requireNonNull(of(config)).groupOf(ROUTED))
                .withMessageStartingWith(directory.toString())
                .withMessageContaining(message);
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "{'quantization_config': %s}",
                "{'compression_config': %s}",
                "{'text_config': {'quantization_config': %s}}",
                "{'quantization_config': null, 'text_config': {'compression_config': %s}}",
                "{'llm_config': {'quantization_config': %s}}",
                "{'quantization_config': %s, 'text_config': {'quantization_config': {'quant_method': 'awq'}}}",
            })
    void itIsFoundWhereverItIs(String config) throws IOException {
        Files.writeString(directory.resolve("quantize_config.json"), "neither read nor JSON");
        WeightQuantization found = requireNonNull(of(config.replace("%s", GPTQ + "}")));
        assertThat(found.method()).isEqualTo(WeightQuantization.Method.GPTQ);
        assertThat(bits(found, ROUTED)).isEqualTo(8);
    }

    @Test
    void gptqsOwnFileIsReadWhereConfigJsonSaysNothing() throws IOException {
        assertThat(of("{}")).isNull();
        Path file = directory.resolve("quantize_config.json");
        Files.writeString(
                file,
                "{\"bits\": 8, \"group_size\": 128, \"damp_percent\": 0.01, \"desc_act\": false, \"sym\": true,"
                        + " \"model_name_or_path\": null}");
        WeightQuantization.Group group = requireNonNull(requireNonNull(of("{}")).groupOf(ROUTED));
        assertThat(group.weights().groupSize()).isEqualTo(128);
        Files.writeString(file, "{\"bits\": 5, \"group_size\": 128}");
        assertRefused("{}", "quantize_config.json: quantization_config: 'bits': expected 2, 3, 4 or 8, got 5");
    }

    @Test
    void awqsOwnFileIsReadWhereConfigJsonSaysNothing() throws IOException {
        Files.writeString(
                directory.resolve("quant_config.json"),
                "{\"zero_point\": true, \"q_group_size\": 64, \"w_bit\": 4, \"version\": \"GEMM\"}");
        WeightQuantization quantization = requireNonNull(of("{}"));
        assertThat(quantization.method()).isEqualTo(WeightQuantization.Method.AWQ);
        WeightQuantization.Arguments weights =
                requireNonNull(quantization.groupOf(ROUTED)).weights();
        assertThat(weights).hasToString("int4 asymmetric static per group of 64");
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '`',
            value = {
                "'version': 'gemv' | 'version': expected gemm, got gemv",
                "'format': 'gemv_fast' | 'format': expected gemm, got gemv_fast",
                "'checkpoint_format': 'marlin' | 'checkpoint_format': expected gemm, got marlin",
                "'version': 'gemm', 'backend': 'llm-awq' | 'backend': expected autoawq, got llm-awq",
                "'bits': 3 | 'bits': expected 4 or 8, got 3",
                "'group_size': 0 | 'group_size': expected -1 or 1 to 1048576, got 0",
            })
    void whatAwqSaysHasToBeRight(String field, String message) {
        assertRefused("{'quantization_config': {'quant_method': 'awq', " + field + "}}", message);
    }

    /** Classes of modules of different models, and names in the ways that people write them. */
    @ParameterizedTest
    @CsvSource({
        "Linear, 8, 8",
        "FusedMoE, 8, 0",
        "fusedmoe, 8, 0",
        "MixtralExperts, 8, 0",
        "GptOssExperts, 8, 0",
        "GraniteMoeParallelExperts, 8, 0",
        "Qwen3MoeSparseMoeBlock, 8, 8",
        "DeepseekV3MoE, 8, 8",
        "Llama4TextMoe, 8, 8",
        "Qwen3MoeMLP, 8, 8",
        "Qwen3MoeAttention, 0, 0",
        "Qwen3MoeTopKRouter, 0, 0",
        "Embedding, 0, 0",
        "model.layers.3.mlp.experts.7.up_proj, 8, 0",
        "up_proj, 8, 8",
        "experts.7.up_proj, 8, 0",
        "model.layers.3.mlp.experts, 8, 0",
        "model.layers.3, 8, 8",
        "mlp.experts, 8, 0",
        "layers.3.mlp, 8, 8",
        "expert, 0, 0",
        "model.layers, 8, 8",
        "model.layers.33, 0, 0",
        "'re:.*mlp.experts.*', 8, 0",
        "'re:mlp.experts.*', 0, 0",
        "'re:.*(?<!shared_)expert.*', 8, 0",
        "'re:model\\\\.layers\\\\.(?:3|4)\\\\..*_proj$', 8, 8",
    })
    void targetsAreClassesNamesOrPatterns(String target, int routed, int shared) throws IOException {
        WeightQuantization quantization = groups("'a': {'targets': ['" + target + "'], " + INT8 + "}", "");
        assertThat(bits(quantization, ROUTED)).isEqualTo(routed);
        assertThat(bits(quantization, SHARED)).isEqualTo(shared);
        WeightQuantization ignoring =
                groups("'a': {'targets': ['Linear'], " + INT8 + "}", ", 'ignore': ['lm_head', '" + target + "']");
        boolean isClass = target.matches("[A-Za-z0-9]+"); // whose modules aren't those within
        assertThat(bits(ignoring, ROUTED)).isEqualTo(isClass ? 8 : 8 - routed);
        assertThat(bits(ignoring, SHARED)).isEqualTo(isClass ? 8 : 8 - shared);
    }

    /** A name counts before a pattern, a pattern before a class; the first of those that name it alike. */
    @Test
    void theClosestTargetCounts() throws IOException {
        String linear = "'a': {'targets': ['Linear'], " + INT4 + "}, ";
        String pattern = "'b': {'targets': ['re:.*experts.*'], " + INT8 + "}";
        assertThat(bits(groups(linear + pattern, ""), ROUTED)).isEqualTo(8);
        assertThat(bits(groups(linear + pattern, ""), SHARED)).isEqualTo(4);
        String name = ", 'c': {'targets': ['" + ROUTED + "'], " + INT4 + "}";
        assertThat(bits(groups(linear + pattern + name, ""), ROUTED)).isEqualTo(4);
        String two =
                "'a': {'targets': ['re:.*up_proj'], " + INT8 + "}, 'b': {'targets': ['re:.*experts.*'], " + INT4 + "}";
        assertThat(bits(groups(two, ""), ROUTED)).isEqualTo(8);
    }

    /** Of groups that no expert is in, and of patterns that the answer doesn't hang on, anything may be wrong. */
    @Test
    void whatIsOfOtherModulesBlocksNothing() throws IOException {
        String experts = "'z': {'targets': ['re:.*experts.*'], " + INT8 + "}";
        for (String other : List.of(
                "'a': {'targets': ['re:.*self_attn.*'], 'weights': {'num_bits': 4, 'dynamic': 'local'}}, ",
                "'a': {'targets': ['lm_head'], 'weights': {'group_size': 2147483647, 'strategy': 'group'}}, ",
                "'a': {'targets': ['lm_head'], 'weights': {'num_bits': 'many'}}, ",
                "'a': {'targets': ['lm_head'], 'weights': {'strategy': 'block', 'block_structure': 'x'}}, ",
                "'a': {'targets': ['lm_head'], 'weights': {}, 'output_activations': {'num_bits': 8}}, ",
                "'a': null, ",
                "'a': {'targets': ['lm_head'], 'weights': null}, ")) {
            assertThat(bits(groups(other + experts, ""), ROUTED)).as(other).isEqualTo(8);
        }
        String named = "'a': {'targets': ['re:('], " + INT4 + "}, 'b': {'targets': ['" + ROUTED + "'], " + INT8 + "}";
        assertThat(bits(groups(named, ""), ROUTED)).isEqualTo(8);
        assertThat(bits(groups(experts, ", 'ignore': ['experts.7', 're:(']"), ROUTED))
                .isZero();
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '`',
            value = {
                "'targets': ['Linear'], 'weights': {'dynamic': 'local'} | 'dynamic': expected true or false, got local",
                "'targets': ['Linear'], 'weights': {'strategy': 'group', 'group_size': 2147483647} |"
                        + " quantization_config: 'group_size': expected 1 to 1048576, got 2147483647",
                "'targets': ['Linear'], 'weights': {'strategy': 'group', 'group_size': -2} | 'group_size': expected 1"
                        + " to",
                "'targets': ['Linear'], 'weights': {'strategy': 'block', 'block_structure': [2147483647, 128]} |"
                        + " 'block_structure': expected two numbers from 1 to 1048576, got [2147483647, 128]",
                "'targets': ['Linear'], 'weights': {'strategy': 'block'} | 'block_structure': expected two numbers from"
                        + " 1 to 1048576, got []",
                "'targets': ['Linear'], 'weights': {}, 'output_activations': {'num_bits': 8} | 'output_activations':"
                        + " expected null",
                "'targets': ['Linear'], 'weights': {'dynamic': true} | 'weights': 'dynamic': expected false, got true:"
                        + " weights without scales in the file are not read",
                "'targets': ['Linear'], 'format': 'marlin-24', 'weights': {} | 'format': expected one of dense,",
                "'targets': ['Linear'], 'format': 'sparse-24-bitmask', 'weights': {} | got sparse-24-bitmask",
                "'targets': ['re:(x'], 'weights': {} | 're:(x' is not a regular expression that is read: an unmatched"
                        + " '('",
                "'targets': 'Linear', 'weights': {} | 'targets': expected a list of strings, got Linear",
            })
    void whatIsOfExpertsHasToBeRight(String group, String message) {
        assertRefused(
                "{'quantization_config': {'quant_method': 'compressed-tensors', 'config_groups': {'a': {" + group
                        + "}}}}",
                message);
    }

    /** A group's own format counts before the file's. */
    @Test
    void formatsAreThoseThatAreRead() throws IOException {
        for (String format : List.of(
                "dense",
                "fakequant",
                "int-quantized",
                "float-quantized",
                "naive-quantized",
                "pack-quantized",
                "nvfp4-pack-quantized",
                "mxfp4-pack-quantized",
                "mxfp8-quantized")) {
            String group = "'a': {'targets': ['Linear'], 'format': '" + format + "', " + INT8 + "}";
            assertThat(bits(groups(group, ", 'format': 'mixed-precision'"), ROUTED))
                    .isEqualTo(8);
            assertThat(bits(groups(group, ", 'format': 'marlin-24'"), ROUTED)).isEqualTo(8);
        }
        String group = "'a': {'targets': ['Linear'], 'format': null, " + INT8 + "}";
        WeightQuantization marlin = groups(group, ", 'format': 'marlin-24'");
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> marlin.groupOf(ROUTED))
                .withMessageContaining("'format': expected one of dense,")
                .withMessageContaining("got marlin-24");
    }

    /** What multiplies weights or activations with more than is stored, whoever wrote it. */
    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '`',
            value = {
                "'quant_method': 'gptq', 'bits': 4 | 'rotation': 'hadamard'",
                "'quant_method': 'gptq', 'bits': 4 | 'adapter': {'name': 'lora', 'rank': 64}",
                "'quant_method': 'awq' | 'spinquant_config': {'r4': true}",
                "'quant_method': 'auto-round', 'data_type': 'mx_fp' | 'rotation_configs': [{'block_size': 32}]",
                "'quant_method': 'auto-round', 'data_type': 'mx_fp' | 'rotation_config': {'block_size': 32}",
                "'quant_method': 'compressed-tensors' | 'transform_config': {'config_groups': {'R1': {}}}",
            })
    void whatIsNotInTheWeightsIsRefused(String method, String field) {
        assertRefused(
                "{'quantization_config': {" + method + ", " + field + "}}",
                "quantization_config: " + field.substring(0, field.indexOf(':')) + ": ");
    }

    @ParameterizedTest
    @ValueSource(strings = {"null", "{}", "[]", "''", "false", "{'config_groups': {}}"})
    void aTransformThatIsNoneBlocksNothing(String none) throws IOException {
        for (String field : List.of("rotation", "rotation_config", "rotation_configs", "adapter", "transform_config")) {
            assertThat(bits(quantization(GPTQ + ", '" + field + "': " + none + "}"), ROUTED))
                    .isEqualTo(8);
        }
    }

    @Test
    void weightsThatLeaveOutZerosAreRefused() throws IOException {
        String group = "'a': {'targets': ['Linear'], " + INT8 + "}";
        assertThat(bits(groups(group, ", 'sparsity_config': {'format': 'dense', 'sparsity_structure': '2:4'}"), ROUTED))
                .isEqualTo(8);
        assertRefused(
                "{'quantization_config': {'config_groups': {" + group
                        + "}, 'sparsity_config': {'format': 'sparse-24-bitmask'}}}",
                "'sparsity_config': 'format': expected dense, got sparse-24-bitmask");
    }

    @Test
    void transformsOfActivationsAreRefused() throws IOException {
        String group = "'a': {'targets': ['Linear'], " + INT8 + "}";
        assertThat(bits(groups(group, ", 'transform_config': {}"), ROUTED)).isEqualTo(8);
        assertThat(bits(groups(group, ", 'transform_config': {'config_groups': {}}"), ROUTED))
                .isEqualTo(8);
        assertRefused(
                "{'quantization_config': {'config_groups': {" + group
                        + "}, 'transform_config': {'config_groups': {'R1': {}}}}}",
                "'transform_config': transforms of activations are not read");
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '`',
            value = {
                "'dynamic': {} | 8 | 32 | true | 8",
                "'dynamic': null | 8 | 32 | true | 8",
                "'dynamic': {'lm_head': {}} | 8 | 32 | true | 8",
                "'bits': 4, 'dynamic': {'+:.*mlp\\\\.experts\\\\..*': {'bits': 8}} | 8 | 32 | true | 4",
                "'bits': 4, 'dynamic': {'.*experts.*': {'bits': 8, 'group_size': 64, 'sym': false}} | 8 | 64 | false |"
                        + " 4",
                "'bits': 4, 'dynamic': {'.*experts.*': {'bits': 8, 'group_size': -1}} | 8 | 0 | true | 4",
                "'bits': 4, 'dynamic': {'^model\\\\.layers\\\\.3\\\\.mlp\\\\.experts\\\\.7\\\\.up_proj$': {'bits': 8}}"
                        + " | 8 | 32 | true | 4",
                "'bits': 4, 'dynamic': {'.*experts.*': {'bits': 8, 'desc_act': false, 'mse': 2.4, 'damp_percent': 0.1}}"
                        + " | 8 | 32 | true | 4",
                "'dynamic': {'-:.*experts.*': {}} | 0 | 0 | true | 8",
                "'dynamic': {'-:.*experts.*': null} | 0 | 0 | true | 8",
                "'dynamic': {'-:.*attn.*': {}, '-:.*shared_expert.*': {}, '-:.*mtp.*': {}} | 8 | 32 | true | 0",
                "'dynamic': {'+:.*experts.*': {'bits': 8}, '-:.*experts.*': {}} | 0 | 0 | true | 8",
                "'bits': 4, 'dynamic': {'.*up_proj': {'bits': 8}, '.*experts.*': {'bits': 3}} | 8 | 32 | true | 8",
                "'bits': 4, 'dynamic': {'-:.*experts.*': {}} | 0 | 0 | true | 4",
                "'dynamic': {'.*gate_proj': {'bits': 'many'}} | 8 | 32 | true | 8",
                "'dynamic': {'experts': {'bits': 4}} | 8 | 32 | true | 8",
                "'modules_in_block_to_quantize': null | 8 | 32 | true | 8",
                "'modules_in_block_to_quantize': [['self_attn.q_proj', 'self_attn.k_proj'], ['mlp.experts.7.up_proj']]"
                        + " | 8 | 32 | true | 0",
                "'modules_in_block_to_quantize': ['mlp.experts'] | 8 | 32 | true | 0",
                "'modules_in_block_to_quantize': ['mlp.shared_expert'] | 0 | 0 | true | 8",
                "'checkpoint_format': 'gptq_v2', 'format': 'gptq_v2' | 8 | 32 | true | 8",
            })
    void gptqsModulesMayDiffer(String fields, int bits, int group, boolean symmetric, int shared) throws IOException {
        String base = fields.startsWith("'bits'") ? GPTQ.replace("'bits': 8, ", "") : GPTQ;
        WeightQuantization quantization = quantization(base + ", " + fields + "}");
        assertThat(bits(quantization, ROUTED)).isEqualTo(bits);
        assertThat(bits(quantization, SHARED)).isEqualTo(shared);
        if (bits > 0) {
            WeightQuantization.Arguments weights =
                    requireNonNull(quantization.groupOf(ROUTED)).weights();
            assertThat(weights.groupSize()).isEqualTo(group);
            assertThat(weights.strategy()).isEqualTo(group == 0 ? "channel" : "group");
            assertThat(weights.symmetric()).isEqualTo(symmetric);
        }
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '`',
            value = {
                "'checkpoint_format': 'marlin' | 'checkpoint_format': expected gptq or gptq_v2, got marlin",
                "'format': 'gptq_p' | 'checkpoint_format': expected gptq or gptq_v2, got gptq_p",
                "'is_marlin_format': true | 'checkpoint_format': expected gptq or gptq_v2, got marlin",
                "'pack_dtype': 'int8' | 'pack_dtype': expected int32, got int8",
                "'dynamic': {'.*': {'bits': 'many'}} | 'bits': expected an integer, got many",
                "'dynamic': {'.*': {'group_size': 2147483647}} | 'group_size': expected -1 or 1 to 1048576",
                "'dynamic': {'.*': {'checkpoint_format': 'gptq_v2'}} | 'dynamic': expected one format for all modules",
                "'dynamic': {'+:(': {}} | '+:(' is not a regular expression that is read",
                "'dynamic': {'-:(': {}} | '-:(' is not a regular expression that is read",
                "'dynamic': [] | 'dynamic': expected an object, got []",
                "'modules_in_block_to_quantize': [1] | 'modules_in_block_to_quantize': expected lists of names, got 1",
            })
    void whatGptqSaysOfExpertsHasToBeRight(String fields, String message) {
        assertRefused("{'quantization_config': " + GPTQ + ", " + fields + "}}", message);
    }

    /** The least and the greatest that are read, and what lies beside them. */
    @ParameterizedTest
    @CsvSource({"1, true", "1048576, true", "-1, true", "0, false", "-2, false", "1048577, false"})
    void groupsHaveOneColumnToAMillion(int size, boolean read) throws IOException {
        String gptq = GPTQ.replace("'group_size': 32", "'group_size': " + size) + "}";
        String block = "{'quant_method': 'fp8', 'weight_block_size': [" + size + ", 16]}";
        String group = "{'quant_method': 'compressed-tensors', 'config_groups': {'g': {'targets': ['Linear'],"
                + " 'weights': {'num_bits': 8, 'type': 'int', 'strategy': 'group', 'group_size': " + size + "}}}}";
        for (String json : size == -1 ? List.of(gptq) : List.of(gptq, group, block)) {
            if (read) {
                assertThat(bits(quantization(json), ROUTED)).isEqualTo(8);
            } else {
                assertRefused(
                        "{'quantization_config': " + json + "}",
                        json.contains("fp8") ? "two numbers from 1 to 1048576" : "1 to 1048576, got " + size);
            }
        }
    }

    @Test
    void eightBitFloatsHaveBlocksOrRows() throws IOException {
        assertThat(requireNonNull(quantization("{'quant_method': 'fp8', 'weight_block_size': [24, 16]}")
                                .groupOf(ROUTED))
                        .weights())
                .hasToString("float8 symmetric static per block of [24, 16]");
        assertThat(requireNonNull(quantization("{'quant_method': 'fp8'}").groupOf(ROUTED))
                        .weights())
                .hasToString("float8 symmetric static per channel");
        assertRefused(
                "{'quantization_config': {'quant_method': 'fp8', 'weight_block_size': [24]}}",
                "'weight_block_size': expected two numbers");
    }

    /** What no module has is a problem of the file; where some may have another scheme, of the modules that have it. */
    @Test
    void aSchemeOfAllModulesIsRefusedAtOnce() throws IOException {
        String bits5 = "{'quantization_config': {'quant_method': 'gptq', 'bits': 5";
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> of(bits5 + "}}"))
                .withMessageContaining("'bits': expected 2, 3, 4 or 8, got 5");
        for (String some : List.of(
                "'dynamic': {'+:.*down_proj': {'bits': 4}}",
                "'dynamic': {'-:.*down_proj': {}}",
                "'modules_in_block_to_quantize': ['up_proj']")) {
            WeightQuantization quantization = requireNonNull(of(bits5 + ", " + some + "}}"));
            assertThatExceptionOfType(CheckpointException.class)
                    .as(some)
                    .isThrownBy(() -> quantization.groupOf(ROUTED))
                    .withMessageContaining("'bits': expected 2, 3, 4 or 8, got 5");
        }
    }

    @ParameterizedTest
    @CsvSource({"1, 128, false", "2, 128, true", "8, 128, true", "9, 128, false", "4, 0, false"})
    void mlxHas2To8Bits(int bits, int group, boolean read) throws IOException {
        WeightQuantization mlx = requireNonNull(of("{'quantization': {'group_size': 32, 'bits': 4, '" + ROUTED
                + "': {'group_size': " + group + ", 'bits': " + bits + "}}}"));
        if (read) {
            assertThat(requireNonNull(mlx.groupOf(ROUTED)).weights())
                    .hasToString("int" + bits + " asymmetric static per group of 128");
            assertThat(requireNonNull(mlx.groupOf(SHARED)).weights())
                    .hasToString("int4 asymmetric static per group of 32");
        } else {
            assertThatExceptionOfType(CheckpointException.class).isThrownBy(() -> mlx.groupOf(ROUTED));
        }
    }

    /** Its tensors tell the rest; what is said of a module by its name counts first. */
    @Test
    void mlxSaysNoMethod() throws IOException {
        String fields = "{'group_size': 64, 'bits': 4, 'mode': 'affine', '" + ROUTED + "': {'bits': 8}, 'x': false}}";
        for (String name : List.of("quantization", "quantization_config")) {
            WeightQuantization mlx = requireNonNull(of("{'" + name + "': " + fields));
            assertThat(mlx.method()).isEqualTo(WeightQuantization.Method.FLOATS);
            assertThat(bits(mlx, ROUTED)).isEqualTo(8);
            assertThat(bits(mlx, SHARED)).isEqualTo(4);
        }
        WeightQuantization wrong = requireNonNull(of("{'quantization': {'group_size': 64, 'bits': 16}}"));
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> wrong.groupOf(ROUTED))
                .withMessageContaining("'bits': expected 2 to 8, got 16");
        assertRefused(
                "{'quantization': {'group_size': 32, 'bits': 4, 'mode': 'mxfp6'}}",
                "'mode': expected one of affine, mxfp4, mxfp8, nvfp4, got mxfp6");
    }

    private static final String ROUND =
            "{'quantization_config': {'quant_method': 'auto-round', 'bits': 4, 'group_size': 64, 'sym': true";

    @Test
    void autoRoundIsPackedAsGptqOrAwq() throws IOException {
        WeightQuantization gptq = requireNonNull(of(ROUND + ", 'packing_format': 'auto_round:auto_gptq',"
                + " 'extra_config': {'" + ROUTED + "': {'bits': 8}, '.*shared.*': {'bits': 16, 'data_type': 'float'},"
                + " 'other': {'bits': 5}}}}"));
        assertThat(gptq.method()).isEqualTo(WeightQuantization.Method.GPTQ);
        assertThat(requireNonNull(gptq.groupOf(ROUTED)).weights()).hasToString("int8 symmetric static per group of 64");
        assertThat(gptq.groupOf("model.layers.0.mlp.shared_expert.up_proj")).isNull();
        assertThat(bits(gptq, "model.layers.0.mlp.experts.77.up_proj")).isEqualTo(4);
        WeightQuantization awq = requireNonNull(
                of(ROUND.replace("'sym': true", "'sym': false") + ", 'packing_format': 'auto_round:auto_awq'}}"));
        assertThat(awq.method()).isEqualTo(WeightQuantization.Method.AWQ);
        assertThat(requireNonNull(awq.groupOf(ROUTED)).weights()).hasToString("int4 asymmetric static per group of 64");
        String asymmetric = ROUND.replace("'sym': true", "'sym': false") + ", 'packing_format': ";
        assertThat(requireNonNull(of(asymmetric + "'auto_round:auto_gptq'}}")).method())
                .isEqualTo(WeightQuantization.Method.GPTQ);
        assertThat(requireNonNull(of(asymmetric + "'auto_round'}}")).method())
                .isEqualTo(WeightQuantization.Method.GPTQ_V2);
        assertThat(requireNonNull(of(ROUND + ", 'data_type': 'mx_fp'}}")).method())
                .isEqualTo(WeightQuantization.Method.FLOATS);
    }

    /** What is beside an empty one counts. */
    @Test
    void anEmptyConfigurationSaysNothing() throws IOException {
        assertThat(of("{'quantization_config': {}}")).isNull();
        assertThat(of("{'quantization_config': {}, 'text_config': {'quantization_config': {'quant_method': 'gptq',"
                        + " 'bits': 4}}}"))
                .isNotNull();
    }

    /** Modules within one of a class are others. */
    @Test
    void aClassThatIsIgnoredIsThatOfItsModulesAlone() throws IOException {
        assertThat(requireNonNull(of("{'quantization_config': {'quant_method': 'compressed-tensors', 'ignore':"
                                + " ['Qwen3MoeSparseMoeBlock', 'Qwen3MoeExperts'], 'config_groups': {'a': {'targets':"
                                + " ['Linear'], 'weights': {'num_bits': 8, 'strategy': 'channel'}}}}}"))
                        .groupOf(ROUTED))
                .isNotNull();
    }

    @Test
    void aBlockMayBeWrittenWithAnX() throws IOException {
        WeightQuantization blocks = requireNonNull(of("{'quantization_config': {'quant_method': 'compressed-tensors',"
                + " 'config_groups': {'a': {'targets': ['Linear'], 'weights': {'strategy': 'block', 'block_structure':"
                + " '64x128'}}}}}"));
        assertThat(requireNonNull(blocks.groupOf(ROUTED)).weights())
                .hasToString("int8 symmetric static per block of [64, 128]");
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '`',
            value = {
                "'packing_format': 'auto_round:llm_compressor' | 'packing_format': expected auto_round,"
                        + " auto_round:auto_gptq or auto_round:auto_awq",
                "'bits': 4 | 'packing_format': expected auto_round, auto_round:auto_gptq",
                "'bits': 4, 'packing_format': 'auto_round:auto_awq', 'data_type': 'mx_int' | 'data_type': expected int,"
                        + " got mx_int",
                "'packing_format': 'auto_round:auto_awq', 'bits': 3 | 'bits': expected 4 or 8, got 3",
            })
    void whatAutoRoundSaysHasToBeUnderstood(String fields, String message) {
        assertRefused(
                "{'quantization_config': {'quant_method': 'auto-round', 'group_size': 64, " + fields + "}}", message);
    }

    @ParameterizedTest
    @CsvSource({"hqq", "torchao", "aqlm"})
    void otherMethodsAreRefused(String method) {
        assertRefused(
                "{'quantization_config': {'quant_method': '" + method + "'}}",
                "quant_method: expected compressed-tensors, gptq, awq, auto-round, fp8, fbgemm_fp8, mxfp4, mxfp8,"
                        + " modelopt, quark, bitsandbytes, w8a8_int8, blockwise_int8 or w4afp8 (or no"
                        + " quantisation), got '" + method + "'");
    }

    @Test
    @Timeout(value = 30, unit = TimeUnit.SECONDS)
    void patternsThatBacktrackForEverDont() throws IOException {
        for (String pattern : List.of("(?:.|..)*?Q", ".*.*.*.*.*.*.*.*.*.*.*.*.*.*Q", "(x|y)*z")) {
            WeightQuantization quantization =
                    groups("'a': {'targets': ['Linear'], " + INT8 + "}", ", 'ignore': ['re:" + pattern + "']");
            for (int i = 0; i < 100; i++) {
                assertThat(bits(quantization, "x".repeat(900) + i)).isEqualTo(8);
            }
        }
    }
}
