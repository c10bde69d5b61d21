package org.tornadomoe.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Random;
import java.util.function.Function;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.checkpoint.file.SafetensorsWriter;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.config.GroupShape;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.QuantizedWeights;
import org.tornadomoe.quant.RankWeights;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Reference;

/**
 * Layers whose matrices are stored in ways of their own: right, or refused with the names of two tensors. What is
 * right is computed in plain loops that share nothing with the library.
 */
class MixedCheckpointTest {
    private static final int E = 4;
    private static final int H = 48;
    private static final int I = 24;
    private static final int K = 2;
    private static final int TOKENS = 7;
    private static final String BLOCK = "model.layers.0.mlp.";
    private static final List<String> PROJECTIONS = List.of("gate_proj", "up_proj", "down_proj");

    /** What rounding to floats and back costs. */
    private static final double EXACT = 1e-6;

    /** What int8 costs a matrix or activations that were floats. */
    private static final double QUANTIZED = 2.5e-2;

    @TempDir
    Path directory;

    /**
     * How a matrix is stored.
     *
     * @param strategy of compressed-tensors; {@code float} for no int8 at all
     * @param group columns that share a scale, for {@code group}; rows and columns, for {@code block}
     * @param activations {@code float}, {@code token}, {@code static}, {@code tensor} or {@code group}
     */
    private record Form(String strategy, int group, boolean zeros, String activations) {
        /** {@code group 8 zeros token}, in this order. */
        static Form of(String text) {
            List<String> words = List.of(text.split(" "));
            int group = words.stream()
                    .filter(word -> word.matches("\\d+"))
                    .mapToInt(Integer::parseInt)
                    .findFirst()
                    .orElse(0);
            String last = words.getLast();
            String activations = Stream.of("token", "static", "per-tensor", "per-group")
                    .filter(last::equals)
                    .findFirst()
                    .orElse("float");
            return new Form(words.getFirst(), group, words.contains("zeros"), activations);
        }

        boolean isFloat() {
            return strategy.equals("float");
        }

        boolean isPacked() {
            return activations.equals("float");
        }

        String json() {
            String weights = "{'num_bits': 8, 'type': 'int', 'symmetric': " + !zeros
                    + ", 'dynamic': false, 'strategy': '" + strategy + "'"
                    + (strategy.equals("group") ? ", 'group_size': " + group : "")
                    + (strategy.equals("block") ? ", 'block_structure': [" + group + ", " + group + "]" : "") + "}";
            String start = "{'num_bits': 8, 'type': 'int', 'symmetric': true, ";
            String activations = switch (this.activations) {
                case "token" -> start + "'strategy': 'token', 'dynamic': true}";
                case "static" -> start + "'strategy': 'tensor', 'dynamic': false}";
                case "per-tensor" -> start + "'strategy': 'tensor', 'dynamic': true}";
                case "per-group" -> start + "'strategy': 'group', 'group_size': " + group + ", 'dynamic': true}";
                default -> "null";
            };
            return "'weights': " + weights + ", 'input_activations': " + activations;
        }
    }

    /** A matrix as its writer means it, and the scale of its input if that is static. */
    private record Meant(double[][] weights, double inputScale) {}

    private SafetensorsWriter writer = new SafetensorsWriter();
    private final Map<String, Meant> meant = new LinkedHashMap<>();
    private final Map<String, float[]> biases = new LinkedHashMap<>();
    private final Map<String, Form> forms = new LinkedHashMap<>();
    private double[][] router = new double[0][0];
    private double[][] sharedGate = new double[0][0];
    private Random random = new Random(5);
    private boolean oneInputScale;
    private int sharedWidth;

    private double[][] floats(String name, int rows, int cols) {
        float[] flat = new float[rows * cols];
        double[][] matrix = new double[rows][cols];
        for (int at = 0; at < flat.length; at++) {
            flat[at] = (float) (random.nextGaussian() * 0.3);
            matrix[at / cols][at % cols] = flat[at];
        }
        writer.add(name, flat, rows, cols);
        return matrix;
    }

    private void write(String module, Form form, int rows, int cols) {
        forms.put(module, form);
        if (form.isFloat()) {
            meant.put(module, new Meant(floats(module + ".weight", rows, cols), 0));
            return;
        }
        int rowsPerScale = switch (form.strategy) {
            case "tensor" -> rows;
            case "block" -> form.group;
            default -> 1;
        };
        int colsPerScale = form.group == 0 ? cols : form.group;
        int scaleRows = Math.ceilDiv(rows, rowsPerScale);
        int scaleCols = Math.ceilDiv(cols, colsPerScale);
        float[] scales = new float[scaleRows * scaleCols];
        byte[] zeros = new byte[scales.length];
        for (int s = 0; s < scales.length; s++) {
            scales[s] = 0.002f + 0.004f * random.nextFloat();
            zeros[s] = (byte) (form.zeros ? random.nextInt(-40, 40) : 0);
        }
        byte[] values = new byte[rows * cols];
        double[][] weights = new double[rows][cols];
        for (int at = 0; at < values.length; at++) {
            values[at] = (byte) random.nextInt(-128, 128);
            int s = at / cols / rowsPerScale * scaleCols + at % cols / colsPerScale;
            weights[at / cols][at % cols] = (values[at] - zeros[s]) * (double) scales[s];
        }
        writer.add(
                module + ".weight_scale",
                scales,
                form.strategy.equals("tensor") ? new long[] {1} : new long[] {scaleRows, scaleCols});
        if (form.isPacked()) {
            writer.add(module + ".weight_packed", packed(values, rows, cols, true), rows, cols / 4)
                    .add(module + ".weight_shape", new int[] {rows, cols}, 2);
        } else {
            writer.add(module + ".weight", values, rows, cols);
        }
        if (form.zeros) {
            writer.add(
                    module + ".weight_zero_point",
                    packed(zeros, scaleRows, scaleCols, false),
                    Math.ceilDiv(scaleRows, 4),
                    scaleCols);
        }
        double inputScale = 0;
        if (form.activations.equals("static")) {
            // Coarse, so that another would show; gate's and up's is one.
            float scale = 0.1f;
            if (!oneInputScale) {
                scale += 0.05f
                        * Math.floorMod(module.replaceAll("(gate|up)_proj", "").hashCode(), 7);
            }
            inputScale = scale;
            writer.add(module + ".input_scale", new float[] {scale}, 1);
        }
        meant.put(module, new Meant(weights, inputScale));
    }

    /** Value + 128, four to a word along the columns, or along the rows. */
    private static int[] packed(byte[] values, int rows, int cols, boolean alongColumns) {
        int[] words = new int[alongColumns ? rows * cols / 4 : Math.ceilDiv(rows, 4) * cols];
        for (int r = 0; r < rows; r++) {
            for (int c = 0; c < cols; c++) {
                int word = alongColumns ? (r * cols + c) / 4 : r / 4 * cols + c;
                words[word] |= (values[r * cols + c] + 128) << (8 * ((alongColumns ? c : r) % 4));
            }
        }
        return words;
    }

    /** A layer with these forms; a module's is the first whose name it contains, the last has none. */
    private void checkpoint(int sharedWidth, Map<String, String> formOf) throws IOException {
        this.sharedWidth = sharedWidth;
        writer = new SafetensorsWriter();
        random = new Random(5);
        forms.clear();
        meant.clear();
        router = floats(BLOCK + "gate.weight", E, H);
        Function<String, Form> form = module -> Form.of(Objects.requireNonNull(formOf.get(
                formOf.keySet().stream().filter(module::contains).findFirst().orElseThrow())));
        for (int e = 0; e < E; e++) {
            expert(BLOCK + "experts." + e + ".", I, form);
        }
        if (sharedWidth > 0) {
            expert(BLOCK + "shared_expert.", sharedWidth, form);
            sharedGate = floats(BLOCK + "shared_expert_gate.weight", 1, H);
        }
        save();
    }

    private void expert(String prefix, int width, Function<String, Form> form) {
        for (String projection : PROJECTIONS) {
            boolean down = projection.equals("down_proj");
            write(prefix + projection, form.apply(prefix + projection), down ? H : width, down ? width : H);
        }
    }

    private void save() throws IOException {
        List<String> groups = new ArrayList<>();
        for (Form form : new LinkedHashSet<>(forms.values())) {
            if (!form.isFloat()) {
                String targets = String.join(
                        ", ",
                        forms.keySet().stream()
                                .filter(module -> form.equals(forms.get(module)))
                                .map(module -> "'" + module + "'")
                                .toList());
                groups.add("'group_" + groups.size() + "': {'targets': [" + targets + "], " + form.json() + "}");
            }
        }
        String quantization = ", 'quantization_config': {'quant_method': 'compressed-tensors', 'format':"
                + " 'mixed-precision', 'config_groups': {" + String.join(", ", groups) + "}, 'ignore': ['lm_head']}";
        Files.writeString(
                directory.resolve("config.json"),
                ("{'model_type': 'qwen2_moe', 'num_hidden_layers': 1, 'hidden_size': " + H
                                + ", 'num_experts_per_tok': " + K + ", 'num_experts': " + E
                                + ", 'moe_intermediate_size': " + I + ", 'norm_topk_prob': true, 'hidden_act': 'silu',"
                                + " 'shared_expert_intermediate_size': " + sharedWidth
                                + (groups.isEmpty() ? "" : quantization) + "}")
                        .replace('\'', '"'));
        writer.write(directory.resolve("model.safetensors"));
    }

    private static float[] hidden() {
        Random random = new Random(7);
        float[] hidden = new float[TOKENS * H];
        for (int at = 0; at < hidden.length; at++) {
            hidden[at] = (float) random.nextGaussian();
        }
        return hidden;
    }

    private static double[] times(double[][] matrix, double[] x) {
        return Arrays.stream(matrix)
                .mapToDouble(row -> IntStream.range(0, x.length)
                        .mapToDouble(c -> row[c] * x[c])
                        .sum())
                .toArray();
    }

    private double[] times(String module, double[] x) {
        Meant matrix = Objects.requireNonNull(meant.get(module));
        double[] rounded = Arrays.stream(x)
                .map(v -> matrix.inputScale == 0
                        ? v
                        : Math.clamp(Math.rint((float) v / (float) matrix.inputScale), -128, 127) * matrix.inputScale)
                .toArray();
        double[] products = times(matrix.weights, rounded);
        float[] bias = biases.get(module);
        for (int r = 0; bias != null && r < bias.length; r++) {
            products[r] += bias[r];
        }
        return products;
    }

    private double[] expert(String prefix, double[] x) {
        double[] gate = times(prefix + "gate_proj", x);
        double[] up = times(prefix + "up_proj", x);
        for (int i = 0; i < gate.length; i++) {
            gate[i] = gate[i] * PublishedModel.sigmoid(gate[i]) * up[i];
        }
        return times(prefix + "down_proj", gate);
    }

    /** What the layer means: int8 activations where their scales are static, floats elsewhere. */
    private double[] right(float[] hidden) {
        double[] output = new double[hidden.length];
        for (int t = 0; t < hidden.length / H; t++) {
            int from = t * H;
            double[] x =
                    IntStream.range(0, H).mapToDouble(h -> hidden[from + h]).toArray();
            double[] probabilities = PublishedModel.softmax(times(router, x));
            double[] weights = PublishedModel.only(probabilities, PublishedModel.top(probabilities, K), true, 1);
            for (int e = 0; e <= E; e++) {
                boolean shared = e == E;
                if (shared ? sharedWidth == 0 : weights[e] == 0) {
                    continue;
                }
                double weight = shared ? PublishedModel.sigmoid(times(sharedGate, x)[0]) : weights[e];
                double[] out = expert(BLOCK + (shared ? "shared_expert." : "experts." + e + "."), x);
                for (int h = 0; h < H; h++) {
                    output[from + h] += weight * out[h];
                }
            }
        }
        return output;
    }

    private double error(@Nullable Int8Scheme scheme, String backend) {
        return error(directory, scheme, backend);
    }

    private double error(Path checkpoint, @Nullable Int8Scheme scheme, String backend) {
        float[] hidden = hidden();
        try (MoeCheckpoint opened = MoeCheckpoint.open(checkpoint)) {
            ExpertWeights weights = opened.layer(0);
            Int8Quantization quantization = scheme == null ? weights.quantization() : Int8Quantization.of(scheme);
            MoeOptions options = MoeOptions.DEFAULT
                    .withBackend(backend)
                    .withMaxTokens(TOKENS)
                    .withQuantization(quantization);
            try (MoeLayer layer = MoeLayer.of(weights, options)) {
                return Numerics.relativeL2(Numerics.widen(layer.forward(hidden)), right(hidden));
            }
        }
    }

    private void assertRight(double bound) {
        assertThat(error(null, "cpu")).isLessThan(bound);
        assertThat(error(null, "reference")).isLessThan(bound);
    }

    private void assertRefused(String... message) {
        assertThatExceptionOfType(CheckpointException.class)
                .isThrownBy(() -> {
                    try (MoeCheckpoint checkpoint = MoeCheckpoint.open(directory)) {
                        checkpoint.layer(0);
                    }
                })
                .withMessageContainingAll(message);
    }

    /** {@code name: form, form}: what names don't say the last says. */
    private static Map<String, String> forms(String text) {
        Map<String, String> forms = new LinkedHashMap<>();
        for (String part : text.split(", ", -1)) {
            String[] nameAndForm = part.split(": ", -1);
            forms.put(nameAndForm.length == 1 ? "" : nameAndForm[0], nameAndForm[nameAndForm.length - 1]);
        }
        return forms;
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "channel",
                "tensor",
                "group 8",
                "group 8 zeros",
                "block 16",
                "group 1048576",
                "block 1048576",
                "experts.1: group 1048576 zeros, group 8",
                // An expert, the first or another, that isn't as the others are.
                "experts.0: group 4, group 8",
                "experts.3: group 12, group 8",
                "experts.0: channel, group 8",
                "experts.0: group 8, channel",
                "experts.2: tensor, channel",
                "experts.0: tensor, group 24",
                "experts.0: group 8 zeros, group 8",
                "experts.3: channel zeros, group 8",
                "experts.1: channel zeros, channel",
                "experts.1: block 16, channel",
                "experts.1: block 16, group 12 zeros",
                // A projection that isn't as the others are.
                "down: group 4, group 8",
                "down: channel, group 8 zeros",
                "gate: group 24, up: channel zeros, down: group 8",
                "experts.3.up: group 4, group 8",
                "experts.0.down: tensor, channel",
                "up: block 10, block 16",
                // The shared expert's.
                "shared: channel, group 8",
                "shared: group 8 zeros, group 8",
                "shared: group 8, group 8 zeros",
                "shared: group 8, channel",
                "shared: tensor, group 24",
                "shared: block 16, channel zeros",
                "shared_expert.down: group 12, group 8",
            })
    void whatHasAnInt8GridIsServedAsItIs(String text) throws IOException {
        // In windows of 24 blocks of 16 lie across their edges.
        for (int shared : new int[] {0, 24, 72}) {
            checkpoint(shared, forms(text));
            assertRight(EXACT);
            // A scheme that is asked for means the same.
            assertThat(error(Int8Scheme.W8A16_CHANNEL, "cpu")).isLessThan(QUANTIZED);
        }
    }

    /** The shared expert's gate and up in one tensor, stored as any other matrix. */
    @ParameterizedTest
    @CsvSource({"group 8 zeros, 72", "channel, 40", "tensor, 24", "block 16, 40", "float, 72", "channel token, 24"})
    void gateAndUpOfTheSharedExpertMayBeOne(String form, int width) throws IOException {
        checkpoint(width, forms("shared: " + form + ", channel"));
        writer = new SafetensorsWriter();
        random = new Random(5);
        forms.clear();
        router = floats(BLOCK + "gate.weight", E, H);
        for (int e = 0; e < E; e++) {
            expert(BLOCK + "experts." + e + ".", I, module -> Form.of("channel"));
        }
        String shared = BLOCK + "shared_expert.";
        write(shared + "gate_up_proj", Form.of(form), 2 * width, H);
        write(shared + "down_proj", Form.of(form), H, width);
        double[][] both = Objects.requireNonNull(meant.get(shared + "gate_up_proj")).weights;
        meant.put(shared + "gate_proj", new Meant(Arrays.copyOf(both, width), 0));
        meant.put(shared + "up_proj", new Meant(Arrays.copyOfRange(both, width, 2 * width), 0));
        sharedGate = floats(BLOCK + "shared_expert_gate.weight", 1, H);
        save();
        assertRight(form.equals("float") ? QUANTIZED : EXACT);
    }

    /** A bias may be any module's alone; a shared expert's are cut as its rows are, the last to what is left. */
    @ParameterizedTest
    @ValueSource(
            strings = {
                "experts.2.gate_proj",
                "experts.1.up_proj",
                "experts.3.down_proj",
                "shared_expert.gate_proj",
                "shared_expert.up_proj",
                "shared_expert.down_proj",
            })
    void biasesOfOneModule(String module) throws IOException {
        for (int width : new int[] {16, 40, 72}) {
            checkpoint(width, forms("channel"));
            int rows = module.endsWith("down_proj") ? H : module.startsWith("shared") ? width : I;
            float[] bias = new float[rows];
            for (int r = 0; r < rows; r++) {
                bias[r] = (float) random.nextGaussian();
            }
            biases.put(BLOCK + module, bias);
            rewrite(BLOCK + module + ".bias", bias, rows);
            assertRight(EXACT);
        }
    }

    /** Windows of 24 columns: the last of 40 is cut short, and groups of 16 lie across the edge of 48. */
    @ParameterizedTest
    @CsvSource({
        "40, shared: group 8 zeros, group 8",
        "40, shared: channel zeros, group 8",
        "40, shared: block 16, channel",
        "40, shared: tensor, channel",
        "40, shared: float, float",
        "48, shared: group 16 zeros, group 8",
        "48, shared: group 16, channel"
    })
    void sharedExpertsOfAnyWidth(int width, String shared, String routed) throws IOException {
        checkpoint(width, forms(shared + ", " + routed));
        assertRight(routed.equals("float") ? QUANTIZED : EXACT);
    }

    /** Activations that are meant to be int8 beside others become floats, which are as exact as any. */
    @ParameterizedTest
    @ValueSource(
            strings = {
                "shared: group 8, channel token",
                "shared: channel token, channel",
                "shared: channel token, block 8 per-group",
                "experts.0: block 8 per-group, block 16 per-group",
                "experts.2: group 8 zeros, tensor per-tensor",
                "down: channel, channel token"
            })
    void differentActivationsBecomeFloats(String text) throws IOException {
        checkpoint(48, forms(text));
        assertRight(EXACT);
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "W8A8_CHANNEL | channel token",
                "W8A8_CHANNEL | shared: tensor token, channel token",
                "W8A8_CHANNEL | experts.0: float, channel token",
                "W8A8_CHANNEL | shared: float, channel token",
                "W8A8_CHANNEL | down: float, channel token",
                "W8A8_TENSOR | tensor per-tensor",
                "W8A8_BLOCK | block 16 per-group",
                "W8A8_BLOCK | block 32 per-group",
                "W8A8_BLOCK | block 1048576 per-group",
                "W8A16_GROUP | experts.0: float, group 8",
                "W8A16_GROUP | shared: float, group 8 zeros",
                "W8A16_GROUP | gate: float, group 8",
                "W8A16_CHANNEL | experts.3.down: float, channel",
            })
    void floatsBesideInt8BecomeInt8(Int8Scheme scheme, String text) throws IOException {
        checkpoint(24, forms(text));
        try (MoeCheckpoint opened = MoeCheckpoint.open(directory)) {
            assertThat(opened.layer(0).quantization().scheme()).isEqualTo(scheme);
        }
        boolean coarse = scheme == Int8Scheme.W8A8_TENSOR || scheme == Int8Scheme.W8A8_BLOCK;
        assertRight(coarse ? 2 * QUANTIZED : QUANTIZED);
    }

    /** The scale of an expert's input is its own; gate and up have weight scales of their own. */
    @ParameterizedTest
    @CsvSource({"true, tensor static", "false, tensor static", "false, 'up: channel static, tensor static'"})
    void staticScales(boolean one, String text) throws IOException {
        oneInputScale = one;
        checkpoint(48, forms(text));
        assertRight(EXACT);
        // All int8 is there without a device; what can't have an expert's own scale says so.
        try (MoeCheckpoint opened = MoeCheckpoint.open(directory)) {
            assertThat(opened.experts(0, 2, 1).quantization().scheme()).isEqualTo(Int8Scheme.W8A8_TENSOR);
        }
    }

    /** Each rank has the scales of its own experts. */
    @Test
    void staticScalesOfRanks() throws IOException {
        checkpoint(24, forms("tensor static"));
        float[] hidden = hidden();
        try (MoeCheckpoint opened = MoeCheckpoint.open(directory);
                Int8Experts all = QuantizedWeights.int8(opened.layer(0), Int8Scheme.W8A8_TENSOR, Progress.NONE)) {
            double[] sum = new double[hidden.length];
            int[][] parts = {{3, 0}, {1, 2, 4}};
            for (int[] part : parts) {
                int[] map = new int[E + 1];
                Arrays.fill(map, -1);
                for (int local = 0; local < part.length; local++) {
                    map[part[local]] = local;
                }
                try (Int8Experts rank = RankWeights.experts(all, all.config(), part, map)) {
                    double[] output = Reference.forward(rank, hidden, TOKENS).output();
                    for (int at = 0; at < sum.length; at++) {
                        sum[at] += output[at];
                    }
                }
            }
            assertThat(Numerics.relativeL2(sum, right(hidden))).isLessThan(EXACT);
        }
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "experts.1: tensor per-tensor, tensor static",
                "shared: channel, tensor static",
                "experts.1: channel token, tensor static",
                "shared: float, tensor static",
                "down: float, tensor static",
                "experts.0: float, tensor static"
            })
    void staticScalesBesideOtherActivationsAreRefused(String text) throws IOException {
        checkpoint(24, forms(text));
        assertRefused("tensors '" + BLOCK, "' and '" + BLOCK, "are not run");
    }

    @Test
    void gateAndUpHaveOneInput() throws IOException {
        checkpoint(0, forms("tensor static"));
        rewrite(BLOCK + "experts.2.up_proj.input_scale", new float[] {7}, 1);
        assertRefused("tensors '" + BLOCK + "experts.2.gate_proj.input_scale' and '" + BLOCK
                + "experts.2.up_proj.input_scale': gate and up have one input");
    }

    @Test
    void missingAndWrongScalesOfActivationsAreNamed() throws IOException {
        checkpoint(0, forms("tensor static"));
        String name = BLOCK + "experts.2.up_proj.input_scale";
        rewrite(name, new float[] {0}, 1);
        assertRefused("model.safetensors: tensor '" + name + "': expected a positive finite scale, got 0.0");
        rewrite(name, new float[] {1, 2}, 2);
        assertRefused("tensor '" + name + "': expected one scale");
        rewrite(name, null);
        assertRefused("has no tensor '" + name + "'");
    }

    /** Writes the checkpoint again with a tensor more, less (null) or other. */
    private void rewrite(String name, float @Nullable [] values, long... shape) throws IOException {
        Path file = directory.resolve("model.safetensors");
        SafetensorsWriter changed = new SafetensorsWriter();
        try (Safetensors there = Safetensors.open(file)) {
            for (String other : there.names()) {
                if (!other.equals(name)) {
                    Tensor tensor = there.tensor(other);
                    changed.add(other, tensor.dtype(), tensor.data(), tensor.shape());
                }
            }
            if (values != null) {
                changed.add(name, values, shape);
            }
            changed.write(file);
        }
    }

    @ParameterizedTest
    @ValueSource(strings = {"experts.1.gate_proj.weight_scale", "shared_expert.down_proj.weight_scale"})
    void scalesThatAreNotFiniteAreNamed(String scales) throws IOException {
        checkpoint(24, forms("channel"));
        float[] values = new float[scales.contains("down") ? H : I];
        values[3] = Float.NaN;
        rewrite(BLOCK + scales, values, values.length, 1);
        for (Int8Scheme scheme : new Int8Scheme[] {Int8Scheme.W8A16_CHANNEL, Int8Scheme.W8A8_BLOCK}) {
            assertThatExceptionOfType(RuntimeException.class)
                    .isThrownBy(() -> error(scheme, "cpu"))
                    .withMessageContainingAll(
                            directory.resolve("model.safetensors").toString(),
                            "tensor '" + BLOCK + scales + "': expected finite",
                            "got NaN");
        }
    }

    @ParameterizedTest
    @ValueSource(strings = {"experts.1.gate_proj.weight", "shared_expert.down_proj.weight"})
    void weightsThatAreNotFiniteAreNamed(String weights) throws IOException {
        checkpoint(24, forms("float"));
        boolean down = weights.contains("down");
        float[] values = new float[H * I];
        values[3] = Float.NEGATIVE_INFINITY;
        rewrite(BLOCK + weights, values, down ? H : I, down ? I : H);
        assertThatExceptionOfType(RuntimeException.class)
                .isThrownBy(() -> error(null, "cpu"))
                .withMessageContainingAll(
                        directory.resolve("model.safetensors").toString(),
                        "tensor '" + BLOCK + weights + "': expected finite values, got -Infinity");
    }

    @ParameterizedTest
    @ValueSource(strings = {"gate.weight", "gate.bias", "shared_expert_gate.weight", "experts.2.up_proj.bias"})
    void whatElseIsNotFiniteIsNamed(String name) throws IOException {
        checkpoint(24, forms("float"));
        float[] values = new float[name.equals("gate.bias") ? E : name.endsWith("bias") ? I : H];
        values = name.equals("gate.weight") ? new float[E * H] : values;
        values[1] = Float.NaN;
        long[] shape = name.endsWith("bias") ? new long[] {values.length} : new long[] {values.length / H, H};
        rewrite(BLOCK + name, values, shape);
        assertRefused("tensor '" + BLOCK + name + "': expected finite values, got NaN at index 1");
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "gate.e_score_correction_bias",
                "e_score_correction_bias",
                "gate.weight_scale",
                "router.weight_scale",
                "gate.tid2eid",
                "router.per_expert_scale",
                "shared_expert_gate.bias",
                "shared_expert.gate_proj.weight_scale_2",
                "experts.0.gate_proj.input_scale",
                "experts.1.down_proj.weight_global_scale",
                "experts.0.gate_up_proj.weight",
                "experts.gate_up_proj",
                "experts.gate_up_proj_bias",
                "experts.down_proj_bias",
                "experts.4.gate_proj.weight",
                "experts.3.down_proj.lora_A.weight",
                "experts.3.norm.weight",
                "shared_experts.norm.weight",
                "expert_bias",
                "moe_statics.e_score_correction_bias"
            })
    void whatNothingReadsIsNamed(String name) throws IOException {
        for (String form : List.of("float", "channel", "channel token")) {
            checkpoint(24, forms(form));
            rewrite(BLOCK + name, new float[] {1}, 1);
            assertRefused("model.safetensors: nothing reads tensor '" + BLOCK + name + "' of the MoE block " + BLOCK);
        }
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "model.layers.0.mlp.gate.local_tokens_per_expert",
                "model.layers.0.input_layernorm.weight",
                "model.layers.1.mlp.experts.0.gate_up_proj.weight",
                "model.layers.0.mlp_norm.weight",
                "model.norm.weight"
            })
    void whatChangesNothingMayBeThere(String name) throws IOException {
        checkpoint(24, forms("channel"));
        rewrite(name, new float[] {1}, 1);
        assertRight(EXACT);
    }

    /** What has no values has no meaning. */
    @Test
    void tensorsWithoutValuesMayBeThere() throws IOException {
        checkpoint(0, forms("channel"));
        rewrite(BLOCK + "experts.1.up_proj.bias_of_none", new float[0], 0);
        assertRight(EXACT);
        rewrite(BLOCK + "shared_expert.gate_proj.weight", new float[0], 0, H);
        assertRight(EXACT);
        rewrite(BLOCK + "shared_expert.gate_proj.weight", new float[H], 1, H);
        assertRefused("expected no shared expert, since the configuration tells of none");
    }

    @Test
    void whatNothingReadsIsCounted() throws IOException {
        checkpoint(0, forms("channel"));
        rewrite(BLOCK + "experts.0.a", new float[] {1}, 1);
        assertRefused("tensor '" + BLOCK + "experts.0.a' of the MoE block", "without what it may mean");
        for (String name : List.of("b", "c", "d")) {
            rewrite(BLOCK + "experts.0." + name, new float[] {1}, 1);
        }
        assertRefused("tensor '" + BLOCK + "experts.0.d' of the MoE block", "without what they may mean");
        rewrite(BLOCK + "experts.0.e", new float[] {1}, 1);
        assertRefused("tensor '" + BLOCK + "experts.0.d' and 1 more of the MoE block", "without what they may mean");
    }

    @Test
    void aFieldThatMayChangeNumbersIsRefusedWhenTheCheckpointIsOpened() throws IOException {
        checkpoint(0, forms("channel"));
        Path file = directory.resolve("config.json");
        Files.writeString(file, Files.readString(file).replaceFirst("\\{", "{\"router_trick\": 2, "));
        assertRefused("config.json: 'router_trick': not known of qwen2_moe");
    }

    /** An odd expert 0 decides nothing for the others. */
    @Test
    void anExpertWithoutAProjectionIsNamed() throws IOException {
        checkpoint(0, forms("channel"));
        rewrite(BLOCK + "experts.0.gate_proj.weight_packed", null);
        assertRefused("experts.0.gate_proj.weight is missing");
    }

    @Test
    void aShapeThatIsAnotherIsRefused() throws IOException {
        checkpoint(0, forms("channel"));
        rewrite(BLOCK + "experts.1.up_proj.weight_shape", null);
        SafetensorsWriter changed = new SafetensorsWriter();
        Path file = directory.resolve("model.safetensors");
        try (Safetensors there = Safetensors.open(file)) {
            for (String other : there.names()) {
                Tensor tensor = there.tensor(other);
                changed.add(other, tensor.dtype(), tensor.data(), tensor.shape());
            }
            changed.add(BLOCK + "experts.1.up_proj.weight_shape", new int[] {I, H + 4}, 2);
            changed.write(file);
        }
        assertRefused("tensor '" + BLOCK + "experts.1.up_proj.weight_shape': expected [24, 48], got [24, 52]");
    }

    /** As floats although the configuration says int8: what is there counts. */
    @Test
    void floatsThatAConfigurationCallsInt8() throws IOException {
        checkpoint(24, forms("experts.1: float, group 8"));
        Path file = directory.resolve("config.json");
        Files.writeString(
                file,
                Files.readString(file)
                        .replaceFirst("\"targets\": \\[[^]]*", "\"targets\": [\"re:.*(gate|up|down)_proj\""));
        assertRight(QUANTIZED);
    }

    /** What {@code moe quantize} writes means what its source does. */
    @ParameterizedTest
    @EnumSource(Int8Scheme.class)
    void whatIsQuantisedMeansTheSame(Int8Scheme scheme) throws IOException {
        checkpoint(72, forms("float"));
        rewrite(BLOCK + "gate.bias", new float[] {0.5f, -1, 1, 0.25f}, E);
        Int8Quantization quantization = switch (scheme) {
            case W8A8_BLOCK -> Int8Quantization.of(scheme).withGrid(new GroupShape(8, 8));
            case W8A16_GROUP -> Int8Quantization.of(scheme).withGrid(new GroupShape(1, 8));
            default -> Int8Quantization.of(scheme);
        };
        Path out = directory.resolve("out");
        CheckpointQuantizer.quantize(directory, out, quantization, null, Progress.NONE);
        try (MoeCheckpoint opened = MoeCheckpoint.open(out)) {
            assertThat(opened.layer(0).quantization().scheme()).isEqualTo(scheme);
        }
        float[] hidden = hidden();
        try (MoeCheckpoint from = MoeCheckpoint.open(directory);
                MoeCheckpoint into = MoeCheckpoint.open(out);
                MoeLayer layer = MoeLayer.of(
                        into.layer(0),
                        MoeOptions.DEFAULT
                                .withBackend("cpu")
                                .withMaxTokens(TOKENS)
                                .withQuantization(into.layer(0).quantization()))) {
            double[] exact = Reference.forward(from.layer(0), hidden, TOKENS).output();
            assertThat(Numerics.relativeL2(Numerics.widen(layer.forward(hidden)), exact))
                    .isLessThan(2 * QUANTIZED);
        }
    }

    /** The longest names that are read, with many places where a layer's name might begin. */
    @Test
    @Timeout(60)
    void longNames() throws IOException {
        checkpoint(0, forms("channel"));
        String name = "layers.0.".repeat(110);
        rewrite(name + "mlp.gat.weight", new float[] {1}, 1);
        assertRight(EXACT);
    }

    /** Whatever is mixed: right, or a complaint about a tensor. */
    @ParameterizedTest
    @ValueSource(longs = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16})
    void anyMix(long seed) throws IOException {
        Random choice = new Random(seed);
        List<String> all = List.of(
                "channel",
                "tensor",
                "channel zeros",
                "group 4",
                "group 8",
                "group 12 zeros",
                "group 24",
                "block 16",
                "channel token",
                "tensor token",
                "tensor per-tensor",
                "block 8 per-group",
                "float");
        Map<String, String> mix = new LinkedHashMap<>();
        for (int e = 0; e <= E; e++) {
            String form = all.get(choice.nextInt(all.size()));
            String expert = e == E ? "shared_expert." : "experts." + e + ".";
            if (choice.nextBoolean()) {
                mix.put(expert + "down", all.get(choice.nextInt(all.size())));
            }
            mix.put(expert, form);
        }
        checkpoint(choice.nextBoolean() ? 72 : 24, mix);
        assertRight(mix.containsValue("float") ? QUANTIZED : EXACT);
    }
}
