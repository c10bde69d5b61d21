package org.tornadomoe.checkpoint;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.TreeMap;
import java.util.function.Consumer;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.QuantizationErrors.ExpertError;
import org.tornadomoe.checkpoint.family.ConfigFile;
import org.tornadomoe.checkpoint.family.LayerShape;
import org.tornadomoe.checkpoint.family.ModelFamilies;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.DType;
import org.tornadomoe.checkpoint.file.Gguf;
import org.tornadomoe.checkpoint.file.JsonFile;
import org.tornadomoe.checkpoint.file.JsonText;
import org.tornadomoe.checkpoint.file.ResumableDirectory;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.checkpoint.file.SafetensorsWriter;
import org.tornadomoe.checkpoint.file.Tensor;
import org.tornadomoe.checkpoint.file.WholeFile;
import org.tornadomoe.checkpoint.weights.Int8Grid;
import org.tornadomoe.checkpoint.weights.Matrix;
import org.tornadomoe.checkpoint.weights.Projections;
import org.tornadomoe.checkpoint.weights.QuantizationConfig;
import org.tornadomoe.checkpoint.weights.WeightQuantization;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Int8Tensor;
import org.tornadomoe.quant.Progress;
import tools.jackson.jr.ob.JSON;

/**
 * Writes a checkpoint again with its experts, shared ones included, in int8, the way compressed-tensors lays them out
 * ({@code int-quantized}, or {@code pack-quantized} where activations stay floats), so that other engines read it.
 * Everything else is copied as it is, what links point to included: in the directory itself or, in Hugging Face's
 * cache, among its blobs.
 *
 * <p>A file of the source becomes a file of the same name, one after the other: it is written beside its place and
 * moved there, and a later run goes on after the last that is there. In memory there is never more than one expert.
 * {@code config.json} comes last, so that a directory that holds one is complete.
 */
public final class CheckpointQuantizer {
    /** What says how the source is stored: written anew, or true no more. */
    private static final Set<String> CONFIGURATIONS =
            Set.of("config.json", "params.json", "quantize_config.json", "quant_config.json", "hf_quant_config.json");

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
    private record Job(int layer, int expert, boolean shared, List<Path> homes) {}

    private final Path out;
    private final Int8Quantization quantization;
    private final CompressedTensorsLayout layout;
    private final Directory source;
    private final Progress progress;
    private final Consumer<Result> report;
    private long done;
    private long total;

    /** The tensors of one layer: those of all would hold all biases. */
    private @Nullable LayerTensors current;

    private int currentLayer;

    private record Directory(
            Path path,
            MoeCheckpoint checkpoint,
            Safetensors tensors,
            @Nullable WeightQuantization quantization) {}

    private CheckpointQuantizer(
            Path out, Int8Quantization quantization, Directory source, Progress progress, Consumer<Result> report) {
        this.out = out;
        this.quantization = quantization;
        layout = new CompressedTensorsLayout(quantization);
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
     * @param source a directory with {@code config.json} and safetensors, its experts in any form that is read. What
     *     else is quantised there is written as floats of 16 bits: {@code config.json} can tell of one writer only
     * @param out a directory that is not there, is empty, or holds what an earlier run of the same settings left
     * @param layers the MoE layers to quantise; null for all
     * @param progress told in experts
     * @param report told what was written, before {@code config.json} is: what it writes to {@code out} is there when
     *     the directory is complete, and if it throws, a later run comes back to it
     * @throws CheckpointException if the source can't be read, a module in it can't, a file beside its tensors is a
     *     link to one that did not come with it, or {@code out} is something else or can't be written
     * @throws IllegalArgumentException if a layer is not an MoE layer, the sizes don't suit the scheme, or a weight is
     *     not finite
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
                    source,
                    "expected a directory with config.json and safetensors, got a GGUF file, which becomes one: name"
                            + " the output *.gguf");
        }
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(source);
                Safetensors tensors = Safetensors.open(source)) {
            JsonFile config = ConfigFile.of(source);
            List<Integer> chosen = layers == null ? checkpoint.moeLayers() : withSharers(checkpoint, layers);
            if (chosen.isEmpty()) {
                throw new CheckpointException(config.file(), "the model has no MoE layer");
            }
            return new CheckpointQuantizer(
                            out,
                            quantization,
                            new Directory(source, checkpoint, tensors, QuantizationConfig.of(config)),
                            progress,
                            report)
                    .run(config, new ArrayList<>(new LinkedHashSet<>(chosen)));
        }
    }

    /** These layers, and those that have the same experts. */
    private static List<Integer> withSharers(MoeCheckpoint checkpoint, List<Integer> layers) {
        Set<Integer> homes = new HashSet<>();
        layers.forEach(layer -> homes.add(checkpoint.shape(layer).home()));
        List<Integer> all = new ArrayList<>(layers);
        checkpoint.moeLayers().stream()
                .filter(layer -> homes.contains(checkpoint.shape(layer).home()))
                .forEach(all::add);
        return all;
    }

    private Result run(JsonFile config, List<Integer> layers) {
        Set<String> replaced = new HashSet<>();
        Set<String> modules = new HashSet<>();
        List<Job> jobs = new ArrayList<>();
        for (int layer : layers) {
            layer(layer).fused().forEach(tensor -> replaced.add(tensor.name()));
            plan(layer, jobs, modules);
        }
        source.tensors.names().stream().filter(name -> isOf(modules, name)).forEach(replaced::add);
        StoredModules others = new StoredModules(source.tensors, source.quantization, floatsOf(config), replaced);
        replaced.addAll(others.replaced());
        Map<Path, SafetensorsWriter> files = new LinkedHashMap<>();
        for (String name : source.tensors.names()) {
            Tensor tensor = Objects.requireNonNull(source.tensors.find(name));
            SafetensorsWriter file =
                    files.computeIfAbsent(tensor.file(), f -> new SafetensorsWriter().metadata("format", "pt"));
            if (!replaced.contains(name)) {
                file.add(name, tensor.dtype(), tensor.data(), tensor.shape());
            }
        }
        others.declare(files);
        Map<Path, List<Job>> jobsOf = new LinkedHashMap<>();
        for (Job job : jobs) {
            Projections expert = projections(job);
            for (int p = expert.isGated() ? 0 : 1; p < 3; p++) {
                Path home = job.homes.get(p);
                Matrix matrix = expert.matrices().get(p);
                layout.declare(
                        Objects.requireNonNull(files.get(home)),
                        expert.modules().get(p),
                        matrix.rows(),
                        matrix.cols(),
                        fusedBias(job, p) != null);
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
            return write(config, layers, files, jobsOf, others, beside);
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

    /** Whether a tensor is one of these modules', other than a bias, which stays as it is. */
    private static boolean isOf(Set<String> modules, String name) {
        for (int dot = name.indexOf('.'); dot >= 0; dot = name.indexOf('.', dot + 1)) {
            if (modules.contains(name.substring(0, dot)) && !name.substring(dot).equals(".bias")) {
                return true;
            }
        }
        return false;
    }

    private void plan(int layer, List<Job> jobs, Set<String> modules) {
        LayerTensors tensors = layer(layer);
        int experts = tensors.experts().size();
        for (int e = 0; e < experts + (tensors.shared() == null ? 0 : 1); e++) {
            boolean shared = e == experts;
            Projections expert = shared
                    ? Objects.requireNonNull(tensors.shared())
                    : tensors.experts().get(e);
            if (expert.modules().isEmpty()) {
                throw new CheckpointException(
                        source.path,
                        "layer " + layer + ", " + (shared ? "shared expert" : "expert " + e)
                                + ": is not quantised, since no module of its own holds what it computes with");
            }
            if (modules.containsAll(expert.modules())) {
                continue; // another layer's, too
            }
            requireFits(expert);
            modules.addAll(expert.modules());
            jobs.add(new Job(
                    layer,
                    e,
                    shared,
                    expert.matrices().stream().map(Matrix::file).toList()));
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

    /** The 16-bit floats that the model's configuration says it is of; BF16 if it says nothing. */
    private static DType floatsOf(JsonFile config) {
        JsonFile text = ModelFamilies.textConfig(config);
        boolean half = Stream.of(config, text)
                .flatMap(json -> Stream.of("dtype", "torch_dtype")
                        .map(field -> json.fields().get(field)))
                .anyMatch("float16"::equals);
        return half ? DType.F16 : DType.BF16;
    }

    private Result write(
            JsonFile config,
            List<Integer> layers,
            Map<Path, SafetensorsWriter> files,
            Map<Path, List<Job>> jobsOf,
            StoredModules others,
            Map<String, Path> beside)
            throws IOException {
        Map<String, Object> plan = new LinkedHashMap<>();
        plan.put("source", source.path.toRealPath().toString());
        plan.put("scheme", quantization.toString());
        plan.put("layers", layers);
        try (ResumableDirectory directory = new ResumableDirectory(out, plan)) {
            total = jobsOf.values().stream().mapToLong(List::size).sum();
            int resumed = 0;
            QuantizationErrors errors = new QuantizationErrors();
            long bytes = 0;
            for (Map.Entry<Path, SafetensorsWriter> file : files.entrySet()) {
                String name = file.getKey().getFileName().toString();
                List<Job> jobs = jobsOf.getOrDefault(file.getKey(), List.of());
                if (directory.has(name, file.getValue())) {
                    resumed++;
                    done += jobs.size();
                    progress.advanced(done, total);
                } else {
                    writeFile(
                            file.getKey(), directory.file(name), directory.record(name), file.getValue(), jobs, others);
                }
                errors.add(JsonFile.read(directory.record(name)));
                bytes += file.getValue().bytes();
            }
            List<ExpertError> experts = jobsOf.values().stream()
                    .flatMap(List::stream)
                    .distinct()
                    .sorted(Comparator.comparingInt(Job::layer).thenComparingInt(Job::expert))
                    .map(job -> errors.of(job.layer, job.expert, job.shared))
                    .toList();
            Result result = new Result(experts, files.size(), resumed, bytes);
            finish(config, layers, files, beside, result);
            return result;
        }
    }

    private void writeFile(
            Path from, Path target, Path errors, SafetensorsWriter file, List<Job> jobs, StoredModules others) {
        Map<String, Object> measured = new LinkedHashMap<>();
        file.write(target, sink -> {
            others.write(from, sink);
            for (Job job : jobs) {
                measured.put(QuantizationErrors.key(job.layer, job.expert), quantize(job, from, sink));
                progress.advanced(++done, total);
            }
            requireUnchanged();
            // Before the file is moved to its place: a file that is there has its errors beside it.
            WholeFile.write(errors, JSON.std.asString(measured) + System.lineSeparator());
        });
    }

    /** Writes those of an expert's matrices that live in a file, and returns their errors. */
    private Map<String, Object> quantize(Job job, Path file, SafetensorsWriter.Sink sink) throws IOException {
        Map<String, Object> errors = new LinkedHashMap<>();
        Projections expert = projections(job);
        try (Int8Experts one = int8(expert)) {
            for (int p = expert.isGated() ? 0 : 1; p < 3; p++) {
                if (job.homes.get(p).equals(file)) {
                    Matrix matrix = expert.matrices().get(p);
                    String module = expert.modules().get(p);
                    Int8Tensor tensor = p == 2 ? one.w2() : one.w13();
                    int firstRow = p == 1 ? expert.gate().rows() : 0;
                    layout.put(module, tensor, firstRow, matrix.rows(), fusedBias(job, p), sink);
                    String name = QuantizationErrors.name(p);
                    errors.put(name, QuantizationErrors.measure(matrix, tensor, firstRow, name));
                }
            }
        } catch (IllegalArgumentException e) {
            String at = "layer " + job.layer + ", " + (job.shared ? "shared expert" : "expert " + job.expert);
            throw new IllegalArgumentException(at + " of " + source.path + ": " + e.getMessage(), e);
        }
        return errors;
    }

    /** As it is stored, if that is what is asked for. */
    private Int8Experts int8(Projections expert) {
        LayerWeights weights = LayerWeights.ofOne(expert);
        Int8Grid grid = Int8Grid.of(weights.config(), false, weights.experts());
        return grid != null && grid.quantization().equals(quantization)
                ? new StoredInt8(weights, grid).load(quantization.scheme(), Progress.NONE)
                : Int8Quantizer.quantize(weights, quantization, Progress.NONE);
    }

    /**
     * The files beside the tensors that are copied, by name: each where it really is. Whoever made the checkpoint chose
     * what its links point to, so that they may only lead to what came with it.
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
                        || name.endsWith(".safetensors.index.json");
                if (!weights && !written.contains(name) && !CONFIGURATIONS.contains(name)) {
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
            WholeFile.write(out.resolve("model.safetensors.index.json"), JsonText.of(index));
        }
        beside.forEach((name, file) -> WholeFile.write(out.resolve(name), fresh -> Files.copy(file, fresh)));
        report.accept(result);
        Map<String, @Nullable Object> fields = new LinkedHashMap<>(config.fields());
        fields.remove("compression_config");
        if (config.has("text_config")) {
            Map<String, @Nullable Object> text = new LinkedHashMap<>(config.object("text_config"));
            if (text.keySet().removeAll(List.of("quantization_config", "compression_config"))) {
                fields.put("text_config", text);
            }
        }
        fields.put(
                "quantization_config",
                layout.config(source.checkpoint.moeLayers().stream()
                        .filter(layer -> !layers.contains(layer))
                        .map(this::namesOf)
                        .toList()));
        WholeFile.write(out.resolve("config.json"), JsonText.of(fields));
    }

    /** A pattern of the names of a layer's modules. */
    private String namesOf(int layer) {
        LayerShape.Stack stack = source.checkpoint.shape(layer).stack();
        return stack == null
                ? "(.*\\.)?layers\\." + layer + "\\..*"
                : "(.*\\.)?" + stack.name().replace(".", "\\.") + "(layers|block)\\." + stack.layer() + "\\..*";
    }
}
