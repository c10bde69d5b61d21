package org.tornadomoe.tuning;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.NavigableMap;
import java.util.TreeMap;
import java.util.logging.Handler;
import java.util.logging.Level;
import java.util.logging.LogRecord;
import java.util.logging.Logger;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.FusedMoeParallelConfig;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Scheme;

class LaunchConfigsTest {
    private static final LaunchConfig SMALL = new LaunchConfig(8, 32, 32, 1, 8, 1);
    private static final LaunchConfig LARGE = new LaunchConfig(64, 64, 128, 16, 4, 3);
    private static final List<LaunchConfig> RUNNABLE = List.of(SMALL, LARGE);

    /** Sizes that no file is packed for. */
    private static final LaunchKey KEY =
            new LaunchKey(9, 14336, "NVIDIA H100 80GB HBM3", "int8_w8a8", null, "cuda", "hopper");

    @TempDir
    Path folder;

    private static LaunchConfig rule(int tokens) {
        return tokens <= 32 ? SMALL : LARGE;
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', nullValues = "-", textBlock = """
        NVIDIA H100 80GB HBM3      | int8_w8a8  | -   | -   | device_name=NVIDIA_H100_80GB_HBM3,dtype=int8_w8a8
        AMD Instinct MI300X/OAM  A | -          | -   | -   | device_name=AMD_Instinct_MI300X_OAM_A
        NVIDIA H200 141GB HBM3e    | -          | -   | -   | device_name=NVIDIA_H200
        NVIDIA GH200 480GB         | -          | -   | -   | device_name=NVIDIA_GH200_480GB
        A                          | int8_w8a8  | 128 | 128 | device_name=A,dtype=int8_w8a8,block_shape=[128,128]
        A                          | int8_w8a16 | 0   | 64  | device_name=A,dtype=int8_w8a16
        """)
    void filesAreNamedAsInVllm(
            String device, @Nullable String dtype, @Nullable Integer rows, @Nullable Integer cols, String name) {
        GroupShape block = rows == null || cols == null ? null : new GroupShape(rows, cols);
        assertThat(new LaunchKey(4, 7168, device, dtype, block, "ptx", "dp4a").fileName())
                .isEqualTo("E=4,N=7168," + name + ",backend=ptx,kernel=dp4a.json");
    }

    @Test
    void aRanksPartIsWhatCounts() {
        FusedMoeConfig.Builder layer = FusedMoeConfig.builder()
                .numExperts(8)
                .expertsPerToken(2)
                .hiddenDim(64)
                .intermediateSize(128);
        FusedMoeConfig tensor = layer.moeParallelConfig(
                        FusedMoeParallelConfig.builder().tp(2, 0).build())
                .build();
        FusedMoeConfig expert = layer.moeParallelConfig(FusedMoeParallelConfig.builder()
                        .tp(2, 0)
                        .expertParallel(true)
                        .build())
                .build();
        assertThat(LaunchKey.of(tensor, "A", null, null, "ptx", "dp4a").fileName())
                .startsWith("E=8,N=64,");
        assertThat(LaunchKey.of(expert, "A", null, null, "ptx", "dp4a").fileName())
                .startsWith("E=4,N=128,");
    }

    @Test
    void int8ActivationsHaveANameOfTheirOwn() {
        assertThat(Int8Scheme.W8A8_CHANNEL.configName()).isEqualTo("int8_w8a8");
        assertThat(Int8Scheme.W8A16_CHANNEL.configName()).isEqualTo("int8_w8a16");
    }

    private LaunchConfigs find(LaunchKey key) {
        return LaunchConfigs.find(key, RUNNABLE, LaunchConfigsTest::rule, folder.toString());
    }

    private LaunchConfigs find(String json) throws IOException {
        Files.writeString(folder.resolve(KEY.fileName()), json);
        return find(KEY);
    }

    private static String json(Map<Integer, LaunchConfig> tuned) {
        return LaunchConfigs.toJson("5.2.0", new TreeMap<>(tuned));
    }

    @Test
    void theNearestTokenCountIsTakenAndOfTwoTheSmaller() throws IOException {
        LaunchConfigs found = find(json(Map.of(16, LARGE, 1, SMALL, 24, SMALL, 4096, LARGE)));
        assertThat(found.source()).isEqualTo(folder.resolve(KEY.fileName()).toString());
        Map<Integer, LaunchConfig> expected = new TreeMap<>(
                Map.of(1, SMALL, 8, SMALL, 9, LARGE, 20, LARGE, 21, SMALL, 2060, SMALL, 2061, LARGE, 1_000_000, LARGE));
        expected.forEach((tokens, config) ->
                assertThat(found.forTokens(tokens)).as("%d tokens", tokens).isEqualTo(config));
    }

    @Test
    void withoutAFileTheRuleSays() {
        LaunchConfigs found = find(KEY);
        assertThat(found.source()).isNull();
        assertThat(found.forTokens(32)).isEqualTo(SMALL);
        assertThat(found.forTokens(33)).isEqualTo(LARGE);
        assertThat(found.upTo(32)).isEqualTo(new TreeMap<>(Map.of(1, SMALL)));
        assertThat(found.upTo(33)).isEqualTo(new TreeMap<>(Map.of(1, SMALL, 33, LARGE)));
        assertThat(LaunchConfigs.find(KEY, RUNNABLE, LaunchConfigsTest::rule, null)
                        .source())
                .isNull();
        assertThat(LaunchConfigs.byRule(RUNNABLE, LaunchConfigsTest::rule).forTokens(33))
                .isEqualTo(LARGE);
    }

    @Test
    void anOverrideWinsAndEnds() throws IOException {
        find(json(Map.of(1, SMALL)));
        LaunchConfigs overridden = LaunchConfigs.override(LARGE, () -> find(KEY));
        assertThat(overridden.source()).isEqualTo("override");
        assertThat(overridden.forTokens(1)).isEqualTo(LARGE);
        assertThat(overridden.forTokens(4096)).isEqualTo(LARGE);
        assertThat(find(KEY).forTokens(1)).isEqualTo(SMALL);
        LaunchConfig nobodys = new LaunchConfig(5, 5, 5, 5, 5, 5);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> LaunchConfigs.override(nobodys, () -> find(KEY)))
                .withMessage("the override: 'BLOCK_SIZE_M': expected one of [8, 64], got 5");
        LaunchConfigs found = find(KEY);
        assertThat(LaunchConfigs.override(LARGE, () -> found.forTokens(1))).isEqualTo(LARGE);
        assertThat(LaunchConfigs.override(LARGE, found::source)).isEqualTo("override");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> LaunchConfigs.override(nobodys, () -> found.forTokens(1)));
        assertThat(found.upTo(100)).isEqualTo(new TreeMap<>(Map.of(1, SMALL)));
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', quoteCharacter = '`', textBlock = """
        {                         | is not valid JSON: Unexpected end-of-input
        [1]                       | expected a JSON object with token counts as keys
        {}                        | expected at least one token count
        {"triton_version": "3.1"} | expected at least one token count
        {"x": {}}                 | expected token counts as keys, got 'x'
        {"0": {}}                 | expected token counts as keys, got '0'
        {"-1": {}}                | expected token counts as keys, got '-1'
        {"99999999999": {}}       | expected token counts as keys, got '99999999999'
        {"1": 7}                  | '1': expected an object, got 7
        {"1": null}               | '1': expected an object, got null
        {"1": {}}                 | '1': 'BLOCK_SIZE_M': expected a positive whole number, got null
        {"1": {"BLOCK_SIZE_M": 0}} | '1': 'BLOCK_SIZE_M': expected a positive whole number, got 0
        {"1": {"BLOCK_SIZE_M": 1.5}} | '1': 'BLOCK_SIZE_M': expected a positive whole number, got 1.5
        {"1": {"BLOCK_SIZE_M": "8"}} | '1': 'BLOCK_SIZE_M': expected a positive whole number, got 8
        {"1": {}, "1": {}}        | is not valid JSON: Duplicate
        """)
    void badFilesAreNamedWithWhatIsWrong(String json, String problem) {
        assertThatIllegalArgumentException()
                .isThrownBy(() -> find(json))
                .withMessageStartingWith(folder.resolve(KEY.fileName()) + ": " + problem);
    }

    @Test
    void parametersThatNoKernelHasAreRefused() {
        String valid = json(Map.of(1, SMALL));
        assertThatIllegalArgumentException()
                .isThrownBy(() -> find(valid.replace("\"num_warps\" : 8", "\"num_warps\" : 9")))
                .withMessageEndingWith(KEY.fileName() + ": '1': 'num_warps': expected one of [4, 8], got 9");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> find(valid.replace("\"num_warps\" : 8", "\"num_warps\" : 4")))
                .withMessageContaining("'1': expected a configuration that the kernels have, one of [{BLOCK_SIZE_M=8,")
                .withMessageContaining("num_warps=4");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> find(valid.replace("\"num_warps\"", "\"SPLIT_K\" : 2, \"num_warps\"")))
                .withMessageContaining("'1': expected [BLOCK_SIZE_M, ")
                .withMessageEndingWith("got 'SPLIT_K'");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> find("{\"1\": {}, \"01\": {}}"))
                .withMessageContaining("'BLOCK_SIZE_M': expected a positive whole number, got null");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> new LaunchConfig(8, 32, -1, 1, 8, 1))
                .withMessage("BLOCK_SIZE_K: expected a positive number, got -1");
    }

    @Test
    void whatIsWrittenIsRead() {
        NavigableMap<Integer, LaunchConfig> tuned = new TreeMap<>(Map.of(1, SMALL, 64, LARGE));
        byte[] written = LaunchConfigs.toJson("5.2.0", tuned).getBytes(StandardCharsets.UTF_8);
        assertThat(LaunchConfigs.parse("here", written)).isEqualTo(tuned);
    }

    @Test
    void theLogSaysWhichOnce() throws IOException {
        List<String> lines = new ArrayList<>();
        Handler handler = new Handler() {
            @Override
            public void publish(@Nullable LogRecord line) {
                if (line != null) {
                    lines.add(line.getLevel() + ": " + line.getMessage());
                }
            }

            @Override
            public void flush() {}

            @Override
            public void close() {}
        };
        Logger logger = Logger.getLogger(LaunchConfigs.class.getName());
        Level before = logger.getLevel();
        logger.setLevel(Level.FINE);
        logger.addHandler(handler);
        String path = folder.resolve(KEY.fileName()).toString();
        try {
            find(KEY);
            find(KEY);
            find(json(Map.of(1, SMALL)));
            find(KEY);
        } finally {
            logger.removeHandler(handler);
            logger.setLevel(before);
        }
        assertThat(lines)
                .containsExactly(
                        "WARNING: Using default MoE config. Performance might be sub-optimal! Config file not found at "
                                + path + ", (the library's jar) configs/" + KEY.fileName(),
                        "FINE: Using configuration from " + path + " for MoE layer.");
    }
}
