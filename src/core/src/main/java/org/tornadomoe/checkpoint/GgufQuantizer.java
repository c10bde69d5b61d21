package org.tornadomoe.checkpoint;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.function.Function;
import java.util.regex.Pattern;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.QuantizationErrors.ExpertError;
import org.tornadomoe.checkpoint.family.LayerShape;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.GgmlType;
import org.tornadomoe.checkpoint.file.Gguf;
import org.tornadomoe.checkpoint.file.JsonFile;
import org.tornadomoe.checkpoint.file.WholeFile;
import org.tornadomoe.checkpoint.weights.Matrix;
import org.tornadomoe.checkpoint.weights.Projections;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.RouterWeights;

/**
 * Writes a checkpoint as one GGUF file with its experts, shared ones included, in Q8_0. Of a GGUF file, whole or split,
 * everything else is copied as it is. Of safetensors there is nothing but the MoE layers: routers and experts, and
 * the metadata that says what they are.
 *
 * <p>A group of 32 values whose scale is an F16 already is kept; others are divided by a 127th of their greatest, as an
 * F16, and rounded to the nearest. In memory there is one expert.
 */
public final class GgufQuantizer {
    private static final GgmlType Q8_0 = GgmlType.Q8_0;
    private static final int GROUP = Q8_0.group;
    private static final int ALIGNMENT = 32;
    private static final int MAX_WRITE = 1 << 28;

    /** What llama.cpp calls a file that is mostly Q8_0. */
    private static final int MOSTLY_Q8_0 = 7;

    /** What follows the layer in the name of a tensor that is written anew. */
    private static final Pattern REPLACED =
            Pattern.compile("ffn_(gate|up|down|gate_up)(_exps|_shexp|\\.\\d+)\\.(weight|bias|(input_)?scale)");

    private static final ValueLayout.OfShort HALF = ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

    /**
     * A tensor to be written.
     *
     * @param shape outermost first
     * @param data null if experts are put there one by one
     */
    private record Pending(
            int type, long[] shape, long bytes, @Nullable MemorySegment data) {}

    /** An expert's projections, and the tensors that its gate, up and down are part of. */
    private record Job(int layer, int expert, int index, boolean shared, List<String> tensors) {}

    private final MoeCheckpoint source;
    private final Path path;
    private final Map<String, MemorySegment> metadata = new LinkedHashMap<>();
    private final Map<String, Pending> tensors = new LinkedHashMap<>();
    private final Map<String, Long> offsets = new LinkedHashMap<>();
    private final List<Job> jobs = new ArrayList<>();

    /** The tensors of the layer that is worked on. */
    private @Nullable LayerTensors current;

    private int currentLayer;

    private GgufQuantizer(MoeCheckpoint source, Path path) {
        this.source = source;
        this.path = path;
    }

    /**
     * Quantises the experts of a checkpoint.
     *
     * @param path a directory with {@code config.json} and safetensors, or a GGUF file
     * @param out the file to write, which appears whole or not at all
     * @param layers the MoE layers to quantise; null for all. The others are copied from GGUF, left out of safetensors
     * @param progress told in experts
     * @return what was written: one file
     * @throws CheckpointException if the source can't be read, its layers can't be told of in GGUF's metadata, or
     *     {@code out} can't be written
     * @throws IllegalArgumentException if a layer is not an MoE layer, its rows aren't multiples of 32, or a weight is
     *     not finite or too large
     */
    public static CheckpointQuantizer.Result quantize(
            Path path, Path out, @Nullable List<Integer> layers, Progress progress) {
        try (MoeCheckpoint source = MoeCheckpoint.open(path)) {
            Set<Integer> chosen = new LinkedHashSet<>(layers == null ? source.moeLayers() : layers);
            if (chosen.isEmpty()) {
                throw new CheckpointException(path, "the model has no MoE layer");
            }
            GgufQuantizer quantizer = new GgufQuantizer(source, path);
            quantizer.plan(chosen);
            return quantizer.write(out, chosen, progress);
        }
    }

    private void plan(Set<Integer> layers) {
        Gguf gguf = source.gguf();
        if (gguf == null) {
            int layer = layers.iterator().next();
            Projections shared = source.tensors(layer).shared();
            GgufArchitecture.metadata(
                            path,
                            source.modelTypes(),
                            source.layer(layer).config(),
                            source.layers(),
                            shared == null ? 0 : shared.gate().rows())
                    .forEach((key, value) -> metadata.put(key, encode(value)));
        } else {
            gguf.encoded().forEach((key, value) -> {
                if (!key.startsWith("split.")) {
                    metadata.put(key, value);
                }
            });
            gguf.names().stream()
                    .filter(name -> !isReplaced(name, layers))
                    .map(gguf::find)
                    .forEach(entry -> copy(Objects.requireNonNull(entry)));
        }
        metadata.put("general.file_type", encode(MOSTLY_Q8_0));
        metadata.put("general.alignment", encode(ALIGNMENT));
        metadata.putIfAbsent("general.quantization_version", encode(2));
        for (int layer : layers) {
            LayerShape shape = source.shape(layer);
            if (!shape.gated() || (shape.sharedIntermediate() > 0 && shape.sharedScale() != 1)) {
                throw new CheckpointException(
                        path,
                        "layer " + layer + ": is not written to GGUF: its "
                                + (shape.gated()
                                        ? "shared experts have a factor that llama.cpp knows of"
                                        : "experts have no gate"));
            }
            declare(layer, source.tensors(layer), gguf == null);
        }
    }

    private static boolean isReplaced(String name, Set<Integer> layers) {
        String[] parts = name.split("\\.", 3);
        return parts.length == 3
                && parts[0].equals("blk")
                && parts[1].matches("\\d{1,6}")
                && layers.contains(Integer.parseInt(parts[1]))
                && REPLACED.matcher(parts[2]).matches();
    }

    private void copy(Gguf.Entry entry) {
        if (entry.type() == null) {
            throw entry.problem("expected a type that is known, to be copied, got " + entry.typeName());
        }
        tensors.put(
                entry.name(),
                new Pending(entry.typeNumber(), entry.shape(), entry.data().byteSize(), entry.data()));
    }

    private void declare(int layer, LayerTensors found, boolean withRouter) {
        String block = "blk." + layer + ".";
        if (withRouter) {
            RouterWeights router = found.router();
            int h = found.experts().getFirst().down().rows();
            add(block + "ffn_gate_inp.weight", router.weight(), router.weight().length / h, h);
            addIfThere(block + "ffn_gate_inp.bias", router.bias());
            addIfThere(block + "exp_probs_b.bias", router.correctionBias());
            addIfThere(block + "ffn_gate_inp_shexp.weight", router.sharedExpertGate());
        }
        List<Projections> experts = found.experts();
        for (int e = 0; e < experts.size(); e++) {
            jobs.add(new Job(layer, e, e, false, names(block, "_exps.weight")));
        }
        declare(names(block, "_exps.weight"), experts.getFirst(), experts.size());
        addBias(block + "ffn_gate_exps.bias", experts, Projections::gateBias);
        addBias(block + "ffn_up_exps.bias", experts, Projections::upBias);
        addBias(block + "ffn_down_exps.bias", experts, Projections::downBias);
        Projections shared = found.shared();
        if (shared != null) {
            if (shared.gateBias() != null || shared.upBias() != null || shared.downBias() != null) {
                throw new CheckpointException(path, "layer " + layer + ": GGUF has no biases of shared experts");
            }
            jobs.add(new Job(layer, experts.size(), 0, true, names(block, "_shexp.weight")));
            declare(names(block, "_shexp.weight"), shared, 0);
        }
    }

    private static List<String> names(String block, String end) {
        return List.of(block + "ffn_gate" + end, block + "ffn_up" + end, block + "ffn_down" + end);
    }

    /** @param count of experts; 0 for a tensor of one alone */
    private void declare(List<String> names, Projections like, int count) {
        for (int p = 0; p < 3; p++) {
            Matrix matrix = like.matrices().get(p);
            if (matrix.cols() % GROUP != 0) {
                throw new IllegalArgumentException(matrix.source() + ": Q8_0 requires its columns (" + matrix.cols()
                        + ") to be divisible by " + GROUP + ".");
            }
            long[] shape = count == 0
                    ? new long[] {matrix.rows(), matrix.cols()}
                    : new long[] {count, matrix.rows(), matrix.cols()};
            tensors.put(names.get(p), new Pending(Q8_0.number, shape, Math.max(1, count) * bytes(matrix), null));
        }
    }

    private static long bytes(Matrix matrix) {
        return (long) matrix.rows() * matrix.cols() / GROUP * Q8_0.bytes;
    }

    private void addIfThere(String name, float @Nullable [] vector) {
        if (vector != null) {
            add(name, vector, vector.length);
        }
    }

    private void addBias(String name, List<Projections> experts, Function<Projections, float @Nullable []> bias) {
        int length = experts.stream()
                .map(bias)
                .mapToInt(one -> one == null ? 0 : one.length)
                .max()
                .orElse(0);
        if (length > 0) {
            float[] all = new float[experts.size() * length];
            for (int e = 0; e < experts.size(); e++) {
                float[] one = bias.apply(experts.get(e));
                System.arraycopy(one == null ? new float[length] : one, 0, all, e * length, length);
            }
            add(name, all, experts.size(), length);
        }
    }

    private void add(String name, float[] values, long... shape) {
        ByteBuffer bytes = ByteBuffer.allocate(4 * values.length).order(ByteOrder.LITTLE_ENDIAN);
        bytes.asFloatBuffer().put(values);
        tensors.put(name, new Pending(GgmlType.F32.number, shape, bytes.capacity(), MemorySegment.ofBuffer(bytes)));
    }

    /** A value of metadata: an Integer, Float, Boolean or String, after its type's number. */
    private static MemorySegment encode(Object value) {
        byte[] bytes = switch (value) {
            case Integer number -> buffer(8).putInt(4).putInt(number).array();
            case Float number -> buffer(8).putInt(6).putFloat(number).array();
            case Boolean truth ->
                buffer(5).putInt(7).put((byte) (truth ? 1 : 0)).array();
            default -> {
                byte[] text = string(value.toString());
                yield buffer(4 + text.length).putInt(8).put(text).array();
            }
        };
        return MemorySegment.ofArray(bytes);
    }

    private static byte[] string(String text) {
        byte[] utf8 = text.getBytes(StandardCharsets.UTF_8);
        return buffer(8 + utf8.length).putLong(utf8.length).put(utf8).array();
    }

    private static ByteBuffer buffer(int bytes) {
        return ByteBuffer.allocate(bytes).order(ByteOrder.LITTLE_ENDIAN);
    }

    /** All before the tensors' data; finds where each begins, from there on. */
    private byte[] header() {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        out.writeBytes("GGUF".getBytes(StandardCharsets.US_ASCII));
        out.writeBytes(buffer(20)
                .putInt(3)
                .putLong(tensors.size())
                .putLong(metadata.size())
                .array());
        metadata.forEach((key, value) -> {
            out.writeBytes(string(key));
            out.writeBytes(value.toArray(ValueLayout.JAVA_BYTE));
        });
        long offset = 0;
        for (Map.Entry<String, Pending> entry : tensors.entrySet()) {
            Pending tensor = entry.getValue();
            out.writeBytes(string(entry.getKey()));
            out.writeBytes(buffer(4).putInt(tensor.shape.length).array());
            for (int d = tensor.shape.length - 1; d >= 0; d--) {
                out.writeBytes(buffer(8).putLong(tensor.shape[d]).array());
            }
            out.writeBytes(buffer(12).putInt(tensor.type).putLong(offset).array());
            offsets.put(entry.getKey(), offset);
            offset = aligned(offset + tensor.bytes);
        }
        out.writeBytes(new byte[(int) (aligned(out.size()) - out.size())]);
        return out.toByteArray();
    }

    private static long aligned(long size) {
        return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }

    private CheckpointQuantizer.Result write(Path out, Set<Integer> layers, Progress progress) {
        byte[] header = header();
        long size = header.length
                + tensors.values().stream()
                        .mapToLong(tensor -> aligned(tensor.bytes))
                        .sum();
        QuantizationErrors errors = new QuantizationErrors();
        WholeFile.write(out, fresh -> {
            try (FileChannel channel =
                    FileChannel.open(fresh, StandardOpenOption.WRITE, StandardOpenOption.CREATE_NEW)) {
                write(channel, MemorySegment.ofArray(header), 0);
                write(channel, MemorySegment.ofArray(new byte[1]), size - 1);
                requireSameLayers(fresh, layers);
                for (Map.Entry<String, Pending> tensor : tensors.entrySet()) {
                    MemorySegment data = tensor.getValue().data;
                    if (data != null) {
                        write(channel, data, header.length + offset(tensor.getKey()));
                    }
                }
                int done = 0;
                for (Job job : jobs) {
                    errors.add(new JsonFile(out, quantize(job, channel, header.length)));
                    progress.advanced(++done, jobs.size());
                }
            } catch (InternalError e) {
                source.requireUnchanged(); // what was to be copied may be gone
                throw e;
            }
            source.requireUnchanged();
        });
        List<ExpertError> experts = jobs.stream()
                .map(job -> errors.of(job.layer, job.expert, job.shared))
                .toList();
        return new CheckpointQuantizer.Result(experts, 1, 0, size);
    }

    private long offset(String tensor) {
        return Objects.requireNonNull(offsets.get(tensor));
    }

    /** Whether what the header says of layers is what the source says, before the work. */
    private void requireSameLayers(Path fresh, Set<Integer> layers) throws IOException {
        try (MoeCheckpoint written = MoeCheckpoint.open(fresh)) {
            for (int layer : layers) {
                ExpertWeights expected = source.layer(layer);
                if (!written.layer(layer).config().equals(expected.config())) {
                    throw new CheckpointException(
                            path,
                            "layer " + layer + ": GGUF's metadata has no way to say what it is: expected "
                                    + expected.config() + ", it would be read as "
                                    + written.layer(layer).config());
                }
            }
        }
    }

    private LayerTensors layer(int n) {
        LayerTensors layer = current;
        if (layer == null || n != currentLayer) {
            layer = source.tensors(n);
            current = layer;
            currentLayer = n;
        }
        return layer;
    }

    /** Writes an expert's matrices, and returns their errors. */
    private Map<String, @Nullable Object> quantize(Job job, FileChannel channel, long start) throws IOException {
        LayerTensors layer = layer(job.layer);
        Projections expert = job.shared
                ? Objects.requireNonNull(layer.shared())
                : layer.experts().get(job.expert);
        Map<String, Object> errors = new LinkedHashMap<>();
        for (int p = 0; p < 3; p++) {
            Matrix matrix = expert.matrices().get(p);
            try (Arena arena = Arena.ofShared()) {
                Int8Tensor tensor = Int8Tensor.allocate(arena, 1, matrix.rows(), matrix.cols(), 1, GROUP, false);
                MemorySegment blocks = arena.allocate(bytes(matrix));
                IntStream.range(0, matrix.rows()).parallel().forEach(row -> quantize(matrix, row, tensor, blocks));
                write(channel, blocks, start + offset(job.tensors.get(p)) + job.index * bytes(matrix));
                String name = QuantizationErrors.name(p);
                errors.put(name, QuantizationErrors.measure(matrix, tensor, 0, name));
            }
        }
        return Map.of(QuantizationErrors.key(job.layer, job.expert), errors);
    }

    private static void quantize(Matrix matrix, int row, Int8Tensor into, MemorySegment blocks) {
        int cols = matrix.cols();
        float[] exact = new float[cols];
        byte[] values = new byte[cols];
        matrix.row(row, exact);
        Matrix.Int8 grid = matrix.int8();
        if (grid != null
                && (grid.zeros() != null || (grid.colsPerScale() % GROUP != 0 && grid.colsPerScale() < cols))) {
            grid = null;
        }
        if (grid != null) {
            grid.values().read(row, values, 0);
        }
        for (int col = 0; col < cols; col += GROUP) {
            float scale = grid == null ? Float.NaN : grid.scale(row, col);
            if (half(scale) != scale) {
                scale = quantize(exact, col, values);
                if (!Float.isFinite(scale)) {
                    throw new IllegalArgumentException(matrix.source() + ": expected finite weights that Q8_0 can hold"
                            + " (up to 8.3e6), got others in row " + row + " from column " + col);
                }
            }
            into.scales()[into.scaleIndex(0, row, col)] = scale;
            long at = ((long) row * cols + col) / GROUP * Q8_0.bytes;
            blocks.set(HALF, at, Float.floatToFloat16(scale));
            MemorySegment.copy(values, col, blocks, ValueLayout.JAVA_BYTE, at + Short.BYTES, GROUP);
        }
        into.setRow(0, row, values, 0);
    }

    /** Quantises a group, and returns its scale; NaN or infinite if that can't be. */
    private static float quantize(float[] exact, int from, byte[] values) {
        float most = 0;
        for (int i = from; i < from + GROUP; i++) {
            most = Math.max(most, Math.abs(exact[i]));
        }
        float scale = half(most / 127);
        for (int i = from; i < from + GROUP; i++) {
            values[i] = scale == 0 ? 0 : (byte) Math.clamp((int) Math.rint(exact[i] / scale), -127, 127);
        }
        return scale;
    }

    private static float half(float value) {
        return Float.float16ToFloat(Float.floatToFloat16(value));
    }

    private static void write(FileChannel channel, MemorySegment data, long at) throws IOException {
        for (long from = 0; from < data.byteSize(); from += MAX_WRITE) {
            ByteBuffer part = data.asSlice(from, Math.min(MAX_WRITE, data.byteSize() - from))
                    .asByteBuffer();
            while (part.hasRemaining()) {
                channel.write(part, at + from + part.position());
            }
        }
    }
}
