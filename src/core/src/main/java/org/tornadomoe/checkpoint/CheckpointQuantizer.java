package org.tornadomoe.checkpoint;

import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.channels.FileLock;
import java.nio.channels.OverlappingFileLockException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.TreeMap;
import java.util.function.Consumer;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.Progress;
import tools.jackson.core.json.JsonFactory;
import tools.jackson.core.json.JsonWriteFeature;
import tools.jackson.jr.ob.JSON;

/**
 * Writes a checkpoint again with its experts, shared ones included, in int8, the way compressed-tensors lays them out ({@code
 * int-quantized}, or {@code pack-quantized} where activations stay floats), so that other engines read it. Everything else is
 * copied as it is, what links point to included: in the directory itself or, in Hugging Face's cache, among its blobs.
 *
 * <p>A file of the source becomes a file of the same name, one after the other: it is written beside its place and moved there,
 * and a later run goes on after the last that is there. In memory there is never more than one expert. {@code config.json}
 * comes last, so that a directory that holds one is complete.
 */
public final class CheckpointQuantizer {
    private static final String STATE = ".moe-quantize";
    private static final String PLAN = "plan.json";
    private static final int WORST_CHANNELS = 3;
    private static final JSON JSON_TEXT = JSON.builder(JsonFactory.builder()
                    .disable(JsonWriteFeature.WRITE_NAN_AS_STRINGS) // as Python does
                    .build())
            .enable(JSON.Feature.PRETTY_PRINT_OUTPUT)
            .build();
    private static final ValueLayout.OfFloat FLOAT =
            ValueLayout.JAVA_FLOAT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
    private static final ValueLayout.OfLong LONG = ValueLayout.JAVA_LONG_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

    /** A row of a projection and its relative L2 error. */
    public record Channel(String projection, int row, double relativeL2) {}

    /**
     * What quantising made of an expert: relative L2 errors, of all its weights and of each projection's.
     *
     * @param expert its number, or the layer's routed experts' count for the shared one
     * @param worst the rows with the greatest errors, the greatest first
     */
    public record ExpertError(
            int layer,
            int expert,
            boolean shared,
            double relativeL2,
            double gate,
            double up,
            double down,
            List<Channel> worst) {}

    /**
     * What was written.
     *
     * @param experts by layer, then by number
     * @param files the safetensors files
     * @param resumed how many of them an earlier run had written
     * @param bytes their tensors' size
     */
    public record Result(List<ExpertError> experts, int files, int resumed, long bytes) {}

    /**
     * An expert to quantise.
     *
     * @param homes the files that hold its gate, up and down projections
     */
    private record Job(int layer, int expert, boolean shared, List<Path> homes) {
        String key() {
            return layer + "/" + expert;
        }
    }

    private final Path out;
    private final Int8Quantization quantization;
    private final Directory source;
    private final Progress progress;
    private final Consumer<Result> report;
    private long done;
    private long total;

    /** The tensors of one layer: those of all would hold all biases. */
    private @Nullable LayerTensors current;

    private int currentLayer;

    private record Directory(Path path, MoeCheckpoint checkpoint, Safetensors tensors) {}

    private CheckpointQuantizer(
            Path out, Int8Quantization quantization, Directory source, Progress progress, Consumer<Result> report) {
        this.out = out;
        this.quantization = quantization;
        this.source = source;
        this.progress = progress;
        this.report = report;
    }

    /** Without a report. Otherwise as the other. */
    public static Result quantize(
            Path source, Path out, Int8Quantization quantization, @Nullable List<Integer> layers, Progress progress) {
        return quantize(source, out, quantization, layers, progress, result -> {});
    }

    /**
     * Quantises the experts of a checkpoint.
     *
     * @param source a directory with {@code config.json} and safetensors, its experts floats
     * @param out a directory that is not there, is empty, or holds what an earlier run of the same settings left
     * @param layers the MoE layers to quantise; null for all
     * @param progress told in experts
     * @param report told what was written, before {@code config.json} is: what it writes to {@code out} is there when the
     *     directory is complete, and if it throws, a later run comes back to it
     * @throws CheckpointException if the source can't be read or is quantised already, a file beside its tensors is a link
     *     to one that did not come with it, or {@code out} is something else or can't be written
     * @throws IllegalArgumentException if a layer is not an MoE layer, the sizes don't suit the scheme, or a weight is not finite
     */
    public static Result quantize(
            Path source,
            Path out,
            Int8Quantization quantization,
            @Nullable List<Integer> layers,
            Progress progress,
            Consumer<Result> report) {
        if (quantization.zeroPoints()) {
            throw new IllegalArgumentException("zeroPoints: expected none, a checkpoint is written without");
        }
        if (quantization.roundToNearest()) {
            throw new IllegalArgumentException(
                    "roundToNearest: expected false, a checkpoint doesn't tell how activations are rounded");
        }
        if (Gguf.looksLike(source)) {
            throw new CheckpointException(
                    source, "expected a directory with config.json and safetensors, got a GGUF file");
        }
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(source);
                Safetensors tensors = Safetensors.open(source)) {
            JsonFile config = JsonFile.read(source.resolve("config.json"));
            if (WeightQuantization.of(config) != null) {
                throw new CheckpointException(config.file(), "says that the model is quantised already");
            }
            List<Integer> chosen = layers == null ? checkpoint.moeLayers() : layers;
            if (chosen.isEmpty()) {
                throw new CheckpointException(config.file(), "the model has no MoE layer");
            }
            return new CheckpointQuantizer(
                            out, quantization, new Directory(source, checkpoint, tensors), progress, report)
                    .run(config, new ArrayList<>(new LinkedHashSet<>(chosen)));
        }
    }

    private Result run(JsonFile config, List<Integer> layers) {
        Set<String> replaced = new LinkedHashSet<>();
        List<Job> jobs = new ArrayList<>();
        for (int layer : layers) {
            plan(layer, jobs, replaced);
        }
        Map<Path, SafetensorsWriter> files = new LinkedHashMap<>();
        for (String name : source.tensors.names()) {
            Tensor tensor = Objects.requireNonNull(source.tensors.find(name));
            SafetensorsWriter file =
                    files.computeIfAbsent(tensor.file(), f -> new SafetensorsWriter().metadata("format", "pt"));
            if (!replaced.contains(name)) {
                file.add(name, tensor.dtype(), tensor.data(), tensor.shape());
            }
        }
        Map<Path, List<Job>> jobsOf = new LinkedHashMap<>();
        for (Job job : jobs) {
            for (int p = 0; p < 3; p++) {
                Path home = job.homes.get(p);
                declare(Objects.requireNonNull(files.get(home)), job, p);
                List<Job> here = jobsOf.computeIfAbsent(home, f -> new ArrayList<>());
                if (here.isEmpty() || here.getLast() != job) {
                    here.add(job);
                }
            }
        }
        Map<String, Path> beside = beside(files.keySet());
        try {
            Files.createDirectories(out);
            if (Files.isSameFile(out, source.path)) {
                throw new CheckpointException(out, "is the source itself: expected another directory");
            }
            return write(config, layers, files, jobsOf, beside);
        } catch (IOException e) {
            throw CheckpointException.of(out, "cannot be written", e);
        } catch (CheckpointException | InternalError e) {
            requireUnchanged(); // what was to be copied may be gone
            throw e;
        }
    }

    private void requireUnchanged() {
        source.checkpoint.requireUnchanged();
        source.tensors.requireUnchanged();
    }

    private void plan(int layer, List<Job> jobs, Set<String> replaced) {
        LayerTensors tensors = layer(layer);
        tensors.fused().forEach(tensor -> replaced.add(tensor.name()));
        int experts = tensors.experts().size();
        for (int e = 0; e < experts + (tensors.shared() == null ? 0 : 1); e++) {
            boolean shared = e == experts;
            Projections expert = shared
                    ? Objects.requireNonNull(tensors.shared())
                    : tensors.experts().get(e);
            requireFits(expert);
            List<Path> homes = new ArrayList<>();
            for (int p = 0; p < 3; p++) {
                Tensor tensor = tensorOf(matrix(expert, p));
                replaced.add(tensor.name());
                homes.add(tensor.file());
            }
            jobs.add(new Job(layer, e, shared, homes));
        }
    }

    private LayerTensors layer(int n) {
        LayerTensors tensors = current;
        if (tensors == null || n != currentLayer) {
            tensors = source.checkpoint.tensors(n);
            current = tensors;
            currentLayer = n;
        }
        return tensors;
    }

    private Projections projections(Job job) {
        LayerTensors tensors = layer(job.layer);
        return job.shared
                ? Objects.requireNonNull(tensors.shared())
                : tensors.experts().get(job.expert);
    }

    private void requireFits(Projections expert) {
        int h = expert.down().rows();
        int i = expert.gate().rows();
        int rows = quantization.grid().row();
        int cols = quantization.grid().col();
        if (quantization.scheme() == Int8Scheme.W8A16_GROUP && cols > 0) {
            requireDivisible("CompressedTensors WNA16 MoE requires hidden_size", h, "group_size", cols);
            requireDivisible(
                    "CompressedTensors WNA16 MoE requires intermediate_size_per_partition", i, "group_size", cols);
        }
        if (quantization.scheme() == Int8Scheme.W8A8_BLOCK) {
            requireDivisible(
                    expert.modules().getFirst() + ": " + quantization + " requires its rows", i, "block_n", rows);
        }
    }

    private static void requireDivisible(String what, int size, String name, int by) {
        if (size % by != 0) {
            throw new IllegalArgumentException(what + " (" + size + ") to be divisible by " + name + " (" + by + ").");
        }
    }

    private static Matrix matrix(Projections expert, int projection) {
        return switch (projection) {
            case 0 -> expert.gate();
            case 1 -> expert.up();
            default -> expert.down();
        };
    }

    /** The bias of a projection that lies in a tensor of all experts and so has to be written anew; else null. */
    private float @Nullable [] fusedBias(Job job, int projection) {
        if (job.shared || layer(job.layer).fused().isEmpty()) {
            return null;
        }
        Projections expert = projections(job);
        return switch (projection) {
            case 0 -> expert.gateBias();
            case 1 -> expert.upBias();
            default -> expert.downBias();
        };
    }

    private static Tensor tensorOf(Matrix matrix) {
        if (matrix instanceof Matrix.Floats floats) {
            return floats.tensor();
        }
        throw new IllegalStateException("not floats: " + matrix);
    }

    // Files

    private boolean isPacked() {
        return !quantization.scheme().quantizesActivations();
    }

    private void declare(SafetensorsWriter file, Job job, int projection) {
        Projections expert = projections(job);
        String module = expert.modules().get(projection);
        int rows = matrix(expert, projection).rows();
        int cols = matrix(expert, projection).cols();
        if (isPacked()) {
            file.declare(module + ".weight_packed", DType.I32, rows, Math.ceilDiv(cols, 4));
            file.declare(module + ".weight_shape", DType.I64, 2);
        } else {
            file.declare(module + ".weight", DType.I8, rows, cols);
        }
        file.declare(module + ".weight_scale", DType.F32, scaleShape(rows, cols));
        if (fusedBias(job, projection) != null) {
            file.declare(module + ".bias", DType.F32, rows);
        }
    }

    private long[] scaleShape(int rows, int cols) {
        return quantization.scheme() == Int8Scheme.W8A8_TENSOR
                ? new long[] {1}
                : new long[] {
                    Math.ceilDiv(rows, quantization.rowsPerScale(rows)),
                    Math.ceilDiv(cols, quantization.colsPerScale(cols))
                };
    }

    private Result write(
            JsonFile config,
            List<Integer> layers,
            Map<Path, SafetensorsWriter> files,
            Map<Path, List<Job>> jobsOf,
            Map<String, Path> beside)
            throws IOException {
        Path state = out.resolve(STATE);
        Map<String, Object> plan = new LinkedHashMap<>();
        plan.put("source", source.path.toRealPath().toString());
        plan.put("scheme", quantization.toString());
        plan.put("layers", layers);
        requireOurs(state, plan);
        Files.createDirectories(state);
        try (FileChannel lock =
                        FileChannel.open(state.resolve("lock"), StandardOpenOption.CREATE, StandardOpenOption.WRITE);
                FileLock held = lock(lock)) {
            Objects.requireNonNull(held);
            writeText(state.resolve(PLAN), JSON_TEXT.asString(plan));
            removeLeftovers();
            total = jobsOf.values().stream().mapToLong(List::size).sum();
            int resumed = 0;
            Map<String, double[]> sums = new TreeMap<>();
            Map<String, List<Channel>> channels = new HashMap<>();
            long bytes = 0;
            for (Map.Entry<Path, SafetensorsWriter> file : files.entrySet()) {
                String name = file.getKey().getFileName().toString();
                Path target = out.resolve(name);
                Path errors = state.resolve(name + ".json");
                List<Job> jobs = jobsOf.getOrDefault(file.getKey(), List.of());
                if (Files.exists(target) && Files.exists(errors) && hasLayout(target, file.getValue())) {
                    resumed++;
                    done += jobs.size();
                    progress.advanced(done, total);
                } else {
                    writeFile(file.getKey(), target, errors, file.getValue(), jobs);
                }
                add(JsonFile.read(errors), sums, channels);
                bytes += file.getValue().bytes();
            }
            Result result = new Result(experts(jobsOf, sums, channels), files.size(), resumed, bytes);
            finish(config, layers, files, beside, result);
            return result;
        } finally {
            if (Files.exists(out.resolve("config.json"))) {
                try (Stream<Path> left = Files.list(state)) {
                    for (Path file : left.toList()) {
                        Files.delete(file);
                    }
                }
                Files.delete(state);
            }
        }
    }

    private FileLock lock(FileChannel channel) throws IOException {
        try {
            FileLock lock = channel.tryLock();
            if (lock != null) {
                return lock;
            }
        } catch (OverlappingFileLockException e) {
            // the same answer
        }
        throw new CheckpointException(out, "another run is writing to it");
    }

    private void requireOurs(Path state, Map<String, Object> plan) throws IOException {
        if (Files.exists(state.resolve(PLAN))) {
            Map<String, @Nullable Object> earlier =
                    JsonFile.read(state.resolve(PLAN)).fields();
            for (Map.Entry<String, Object> setting : plan.entrySet()) {
                Object before = earlier.get(setting.getKey());
                if (!setting.getValue().equals(before)) {
                    throw new CheckpointException(
                            out,
                            "an earlier run with another " + setting.getKey() + " stopped here: expected "
                                    + setting.getValue() + ", got " + before + "; choose another directory");
                }
            }
            return;
        }
        try (Stream<Path> there = Files.list(out)) {
            List<String> names = there.map(p -> p.getFileName().toString())
                    .filter(name -> !name.equals(STATE))
                    .limit(3)
                    .toList();
            if (!names.isEmpty()) {
                throw new CheckpointException(
                        out,
                        "expected a directory that is new or empty, or where an earlier run stopped; it holds "
                                + String.join(", ", names));
            }
        }
    }

    /** What a run that was killed had begun to write. */
    private void removeLeftovers() throws IOException {
        try (Stream<Path> there = Files.list(out)) {
            for (Path file : there.toList()) {
                if (WholeFile.isLeftover(file)) {
                    Files.delete(file);
                }
            }
        }
    }

    private static boolean hasLayout(Path file, SafetensorsWriter expected) {
        try (Safetensors there = Safetensors.open(file)) {
            Map<String, String> layout = new HashMap<>();
            for (String name : there.names()) {
                Tensor tensor = Objects.requireNonNull(there.find(name));
                layout.put(name, tensor.dtype() + java.util.Arrays.toString(tensor.shape()));
            }
            return layout.equals(expected.layout());
        } catch (CheckpointException e) {
            return false;
        }
    }

    private void writeFile(Path from, Path target, Path errors, SafetensorsWriter file, List<Job> jobs) {
        Map<String, Object> measured = new LinkedHashMap<>();
        file.write(target, sink -> {
            for (Job job : jobs) {
                measured.put(job.key(), quantize(job, from, sink));
                progress.advanced(++done, total);
            }
            requireUnchanged();
            // Before the file is moved to its place: a file that is there has its errors beside it.
            writeText(errors, JSON.std.asString(measured));
        });
    }

    private static void writeText(Path file, String text) {
        WholeFile.write(file, text + System.lineSeparator());
    }

    // Experts

    /** Writes those of an expert's matrices that live in a file, and returns their errors. */
    private Map<String, Object> quantize(Job job, Path file, SafetensorsWriter.Sink sink) throws IOException {
        Map<String, Object> errors = new LinkedHashMap<>();
        Projections expert = projections(job);
        try (Int8Experts one = Int8Quantizer.quantize(OneExpert.of(expert), quantization, Progress.NONE)) {
            for (int p = 0; p < 3; p++) {
                if (job.homes.get(p).equals(file)) {
                    Matrix matrix = matrix(expert, p);
                    String module = expert.modules().get(p);
                    Int8Tensor tensor = p == 2 ? one.w2() : one.w13();
                    int firstRow = p == 1 ? expert.gate().rows() : 0;
                    put(module, tensor, firstRow, matrix.rows(), sink);
                    float[] bias = fusedBias(job, p);
                    if (bias != null) {
                        MemorySegment data = MemorySegment.ofArray(new byte[4 * bias.length]);
                        MemorySegment.copy(bias, 0, data, FLOAT, 0, bias.length);
                        sink.put(module + ".bias", data);
                    }
                    errors.put(name(p), measure(matrix, tensor, firstRow, name(p)));
                }
            }
        } catch (IllegalArgumentException e) {
            String at = "layer " + job.layer + ", " + (job.shared ? "shared expert" : "expert " + job.expert);
            throw new IllegalArgumentException(at + " of " + source.path + ": " + e.getMessage(), e);
        }
        return errors;
    }

    private static String name(int projection) {
        return List.of("gate", "up", "down").get(projection);
    }

    private void put(String module, Int8Tensor tensor, int firstRow, int rows, SafetensorsWriter.Sink sink)
            throws IOException {
        int cols = tensor.cols();
        int width = isPacked() ? Math.ceilDiv(cols, 4) * 4 : cols;
        byte[] row = new byte[width];
        // At most one projection at a time: with the expert itself that stays below two experts.
        try (var arena = java.lang.foreign.Arena.ofConfined()) {
            MemorySegment values = arena.allocate(Math.max(1, (long) rows * width));
            for (int r = 0; r < rows; r++) {
                tensor.row(0, firstRow + r, row);
                for (int c = 0; c < cols && isPacked(); c++) {
                    row[c] ^= (byte) 0x80;
                }
                MemorySegment.copy(row, 0, values, ValueLayout.JAVA_BYTE, (long) r * width, width);
            }
            sink.put(module + (isPacked() ? ".weight_packed" : ".weight"), values);
        }
        long[] shape = scaleShape(rows, cols);
        int scaleRows = (int) shape[0];
        int scaleCols = shape.length == 1 ? 1 : (int) shape[1];
        MemorySegment scales = MemorySegment.ofArray(new byte[4 * scaleRows * scaleCols]);
        for (int r = 0; r < scaleRows; r++) {
            for (int c = 0; c < scaleCols; c++) {
                float scale =
                        tensor.scale(0, firstRow + r * quantization.rowsPerScale(rows), c * tensor.colsPerScale());
                scales.set(FLOAT, 4L * (r * scaleCols + c), scale);
            }
        }
        sink.put(module + ".weight_scale", scales);
        if (isPacked()) {
            MemorySegment size = MemorySegment.ofArray(new byte[16]);
            size.set(LONG, 0, rows);
            size.set(LONG, 8, cols);
            sink.put(module + ".weight_shape", size);
        }
    }

    /** Squared error and square of a matrix, and its worst rows. */
    private static Map<String, Object> measure(Matrix matrix, Int8Tensor tensor, int firstRow, String name) {
        int cols = matrix.cols();
        double[] error = new double[matrix.rows()];
        double[] square = new double[matrix.rows()];
        IntStream.range(0, matrix.rows()).parallel().forEach(r -> {
            float[] exact = new float[cols];
            byte[] values = new byte[cols];
            matrix.row(r, exact);
            tensor.row(0, firstRow + r, values);
            for (int from = 0; from < cols; from += tensor.colsPerScale()) {
                double scale = tensor.scale(0, firstRow + r, from);
                for (int c = from; c < Math.min(cols, from + tensor.colsPerScale()); c++) {
                    double difference = exact[c] - values[c] * scale;
                    error[r] += difference * difference;
                    square[r] += (double) exact[c] * exact[c];
                }
            }
        });
        List<Map<String, Object>> worst = IntStream.range(0, matrix.rows())
                .mapToObj(r -> new Channel(name, r, relative(error[r], square[r])))
                .sorted(Comparator.comparingDouble(channel -> -channel.relativeL2))
                .limit(WORST_CHANNELS)
                .map(channel -> Map.<String, Object>of("row", channel.row, "relativeL2", channel.relativeL2))
                .toList();
        Map<String, Object> measured = new LinkedHashMap<>();
        measured.put(
                "error",
                IntStream.range(0, error.length).mapToDouble(r -> error[r]).sum());
        measured.put(
                "square",
                IntStream.range(0, square.length).mapToDouble(r -> square[r]).sum());
        measured.put("worst", worst);
        return measured;
    }

    private static double relative(double error, double square) {
        return square == 0 ? 0 : Math.sqrt(error / square);
    }

    /** Adds what a file's errors say: for each expert the squared error and square of gate, up and down. */
    private static void add(JsonFile errors, Map<String, double[]> sums, Map<String, List<Channel>> channels) {
        for (String key : errors.fields().keySet()) {
            JsonFile expert = errors.nested(key);
            double[] sum = sums.computeIfAbsent(key, k -> new double[6]);
            for (int p = 0; p < 3; p++) {
                if (expert.has(name(p))) {
                    JsonFile projection = expert.nested(name(p));
                    sum[2 * p] = Objects.requireNonNull(projection.number("error"));
                    sum[2 * p + 1] = Objects.requireNonNull(projection.number("square"));
                    for (JsonFile row : projection.objects("worst")) {
                        channels.computeIfAbsent(key, k -> new ArrayList<>())
                                .add(new Channel(
                                        name(p), row.integer("row"), Objects.requireNonNull(row.number("relativeL2"))));
                    }
                }
            }
        }
    }

    private static List<ExpertError> experts(
            Map<Path, List<Job>> jobsOf, Map<String, double[]> sums, Map<String, List<Channel>> channels) {
        return jobsOf.values().stream()
                .flatMap(List::stream)
                .distinct()
                .sorted(Comparator.comparingInt(Job::layer).thenComparingInt(Job::expert))
                .map(job -> {
                    double[] s = Objects.requireNonNull(sums.get(job.key()));
                    List<Channel> worst = channels.getOrDefault(job.key(), List.of()).stream()
                            .sorted(Comparator.comparingDouble(channel -> -channel.relativeL2))
                            .limit(WORST_CHANNELS)
                            .toList();
                    return new ExpertError(
                            job.layer,
                            job.expert,
                            job.shared,
                            relative(s[0] + s[2] + s[4], s[1] + s[3] + s[5]),
                            relative(s[0], s[1]),
                            relative(s[2], s[3]),
                            relative(s[4], s[5]),
                            worst);
                })
                .toList();
    }

    // What is beside the tensors

    /**
     * The files beside the tensors that are copied, by name: each where it really is. Whoever made the checkpoint chose what
     * its links point to, so that they may only lead to what came with it.
     */
    private Map<String, Path> beside(Set<Path> tensors) {
        Set<String> written =
                tensors.stream().map(file -> file.getFileName().toString()).collect(Collectors.toSet());
        Map<String, Path> beside = new TreeMap<>();
        try (Stream<Path> there = Files.list(source.path)) {
            Path root = source.path.toRealPath();
            for (Path file : there.filter(Files::isRegularFile).toList()) {
                String name = file.getFileName().toString();
                boolean weights = name.matches(".*\\.(safetensors|bin|pt|pth|gguf|h5|msgpack)")
                        || name.equals("model.safetensors.index.json");
                if (!weights && !written.contains(name) && !name.equals("config.json")) {
                    Path real = file.toRealPath();
                    if (!real.startsWith(root) && !isBlob(root, real)) {
                        throw new CheckpointException(
                                file,
                                "expected a file, or a link to one of the checkpoint's, got a link to " + real
                                        + ", which lies outside it and is not copied");
                    }
                    beside.put(name, real);
                }
            }
        } catch (IOException e) {
            throw CheckpointException.of(source.path, "cannot be read", e);
        }
        return beside;
    }

    /** Whether Hugging Face's cache has it: {@code snapshots/REVISION/...} links to {@code blobs/HASH} beside it. */
    private static boolean isBlob(Path root, Path real) {
        for (Path revision = root; revision.getParent() != null; revision = revision.getParent()) {
            Path snapshots = revision.getParent();
            if (snapshots.endsWith("snapshots")
                    && snapshots.resolveSibling("blobs").equals(real.getParent())) {
                return true;
            }
        }
        return false;
    }

    private void finish(
            JsonFile config,
            List<Integer> layers,
            Map<Path, SafetensorsWriter> files,
            Map<String, Path> beside,
            Result result) {
        if (files.size() > 1
                || !files.keySet().iterator().next().getFileName().toString().equals("model.safetensors")) {
            Map<String, Object> weightMap = new TreeMap<>();
            files.forEach((file, writer) -> writer.layout()
                    .keySet()
                    .forEach(name -> weightMap.put(name, file.getFileName().toString())));
            Map<String, Object> index = new LinkedHashMap<>();
            index.put("metadata", Map.of("total_size", result.bytes));
            index.put("weight_map", weightMap);
            writeText(out.resolve("model.safetensors.index.json"), JSON_TEXT.asString(index));
        }
        beside.forEach((name, file) -> WholeFile.write(out.resolve(name), fresh -> Files.copy(file, fresh)));
        report.accept(result);
        Map<String, Object> fields = new LinkedHashMap<>(config.fields());
        fields.put("quantization_config", quantizationConfig(layers));
        writeText(
                out.resolve("config.json"),
                JSON_TEXT.with(JSON.Feature.WRITE_NULL_PROPERTIES).asString(fields));
    }

    private Map<String, Object> quantizationConfig(List<Integer> layers) {
        Map<String, Object> weights = arguments();
        weights.put("dynamic", false);
        @Nullable Map<String, Object> activations = null;
        switch (quantization.scheme()) {
            case W8A8_CHANNEL, W8A16_CHANNEL -> weights.put("strategy", "channel");
            case W8A8_TENSOR -> weights.put("strategy", "tensor");
            case W8A8_BLOCK -> {
                weights.put("strategy", "block");
                weights.put(
                        "block_structure",
                        List.of(quantization.grid().row(), quantization.grid().col()));
            }
            case W8A16_GROUP -> {
                // A group of a whole row is a channel.
                boolean channel = quantization.grid().col() == -1;
                weights.put("strategy", channel ? "channel" : "group");
                if (!channel) {
                    weights.put("group_size", quantization.grid().col());
                }
            }
        }
        if (!isPacked()) {
            activations = arguments();
            activations.put("dynamic", true);
            switch (quantization.scheme()) {
                case W8A8_CHANNEL -> activations.put("strategy", "token");
                case W8A8_TENSOR -> activations.put("strategy", "tensor");
                default -> {
                    activations.put("strategy", "group");
                    activations.put("group_size", quantization.grid().col());
                }
            }
        }
        Map<String, @Nullable Object> group = new LinkedHashMap<>();
        // Mixtral's names as well as everybody else's, and the first expert by the names that vLLM asks for.
        group.put(
                "targets",
                List.of("re:.*\\.(experts\\.\\d+|shared_experts?)\\.(gate_proj|up_proj|down_proj|w1|w2|w3)$"));
        group.put("weights", weights);
        group.put("input_activations", activations);
        group.put("output_activations", null);
        Map<String, @Nullable Object> all = new LinkedHashMap<>();
        all.put("quant_method", "compressed-tensors");
        all.put("format", isPacked() ? "pack-quantized" : "int-quantized");
        all.put("quantization_status", "compressed");
        all.put("global_compression_ratio", null);
        all.put("kv_cache_scheme", null);
        all.put("config_groups", Map.of("group_0", group));
        all.put(
                "ignore",
                source.checkpoint.moeLayers().stream()
                        .filter(layer -> !layers.contains(layer))
                        .map(layer -> "re:.*\\.layers\\." + layer + "\\..*")
                        .toList());
        return new LinkedHashMap<>(all);
    }

    private static Map<String, Object> arguments() {
        Map<String, Object> arguments = new LinkedHashMap<>();
        arguments.put("num_bits", 8);
        arguments.put("type", "int");
        arguments.put("symmetric", true);
        return arguments;
    }
}
