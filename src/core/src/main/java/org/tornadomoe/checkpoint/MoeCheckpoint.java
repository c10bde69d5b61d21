package org.tornadomoe.checkpoint;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.family.ConfigFile;
import org.tornadomoe.checkpoint.family.ExpertFields;
import org.tornadomoe.checkpoint.family.LayerShape;
import org.tornadomoe.checkpoint.family.ModelFamilies;
import org.tornadomoe.checkpoint.family.ModelFamily;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.CheckpointFile;
import org.tornadomoe.checkpoint.file.Gguf;
import org.tornadomoe.checkpoint.file.JsonFile;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.checkpoint.weights.BlockTensors;
import org.tornadomoe.checkpoint.weights.Matrix;
import org.tornadomoe.checkpoint.weights.MatrixReader;
import org.tornadomoe.checkpoint.weights.QuantizationConfig;
import org.tornadomoe.checkpoint.weights.WeightQuantization;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.WeightRows;

/**
 * A model's MoE layers: a directory in Hugging Face's layout, {@code config.json} and safetensors, or a GGUF file. The
 * families known are in docs/checkpoints.md. Nothing is read before a layer asks for it. Thread-safe; closing it ends
 * the layers taken from it. A file that is changed while it is open is a {@link CheckpointException} of whoever reads
 * weights: {@link ExpertWeights#requireUnchanged}.
 */
public final class MoeCheckpoint implements AutoCloseable {
    /** The tensors of a checkpoint, by layer. */
    private sealed interface Source {
        /** What makes layer n a dense one; null if it is an MoE layer. */
        @Nullable
        String whyDense(int n);

        LayerTensors layer(int n, LayerShape shape);

        /** The bytes that layer reads, by type. */
        Map<String, Long> bytes(int n, LayerShape shape);

        /** How files are laid out, for people. */
        String format();

        /** The names of all tensors. */
        Set<String> names();

        WeightRows matrix(String name);

        /** What the configuration has under that name; null if nothing. */
        @Nullable
        Object field(String name);

        /** Throws a CheckpointException if a file was changed since it was opened. */
        void requireUnchanged();

        void close();
    }

    private record Directory(
            JsonFile json,
            ModelFamily family,
            Safetensors tensors,
            @Nullable WeightQuantization quantization) implements Source {
        @Override
        public @Nullable String whyDense(int n) {
            return family.whyDense(json, n);
        }

        @Override
        public LayerTensors layer(int n, LayerShape shape) {
            return new LayerReader(new BlockTensors(tensors), quantization, n, shape).read();
        }

        @Override
        public Map<String, Long> bytes(int n, LayerShape shape) {
            BlockTensors block = new BlockTensors(tensors);
            new LayerReader(block, quantization, n, shape).read();
            Map<String, Long> bytes = new TreeMap<>();
            block.takenSince(0)
                    .forEach(tensor ->
                            bytes.merge(tensor.dtype().name(), tensor.data().byteSize(), Long::sum));
            return bytes;
        }

        @Override
        public String format() {
            return quantization == null
                    ? "safetensors"
                    : "safetensors, " + quantization.method().toString().toLowerCase(Locale.ROOT);
        }

        @Override
        public Set<String> names() {
            return tensors.names();
        }

        @Override
        public WeightRows matrix(String name) {
            String module = name.replaceFirst("\\.weight$", "");
            BlockTensors block = new BlockTensors(tensors);
            boolean packed = MatrixReader.SUFFIXES.stream().anyMatch(suffix -> block.has(module + "." + suffix));
            if (block.hasFloats(name) || module.equals(name) || !packed) {
                return Matrix.Floats.of(tensors.tensor(name));
            }
            MatrixReader reader = new MatrixReader(block, quantization);
            int[] shape = reader.shape(module);
            return reader.read(module, shape[0], shape[1]);
        }

        @Override
        public @Nullable Object field(String name) {
            return json.fields().get(name);
        }

        @Override
        public void requireUnchanged() {
            tensors.requireUnchanged();
        }

        @Override
        public void close() {
            tensors.close();
        }
    }

    private record GgufFile(GgufModel model) implements Source {
        @Override
        public @Nullable String whyDense(int n) {
            return model.isMoe(n) ? null : "it has no blk." + n + ".ffn_gate_inp.weight";
        }

        @Override
        public LayerTensors layer(int n, LayerShape shape) {
            return model.layer(n, shape);
        }

        @Override
        public Map<String, Long> bytes(int n, LayerShape shape) {
            GgufLayer layer = new GgufLayer(model.gguf(), n, shape);
            layer.find();
            Map<String, Long> bytes = new TreeMap<>();
            layer.taken()
                    .forEach(entry -> bytes.merge(entry.typeName(), entry.data().byteSize(), Long::sum));
            return bytes;
        }

        @Override
        public String format() {
            return "GGUF";
        }

        @Override
        public Set<String> names() {
            return model.gguf().names();
        }

        @Override
        public WeightRows matrix(String name) {
            Gguf.Entry entry = model.gguf().find(name);
            if (entry == null) {
                throw new CheckpointException(model.gguf().path(), "has no tensor '" + name + "'");
            }
            return GgufLayer.matrix(entry);
        }

        @Override
        public @Nullable Object field(String name) {
            Object value = model.gguf().metadata().get(name);
            return value instanceof Gguf.Skipped ? model.gguf().skipped(name) : value;
        }

        @Override
        public void requireUnchanged() {
            model.gguf().requireUnchanged();
        }

        @Override
        public void close() {
            model.gguf().close();
        }
    }

    private final JsonFile json;
    private final ModelFamily family;
    private final int layers;
    private final FusedMoeConfig config;
    private final Source source;

    private MoeCheckpoint(JsonFile json, ModelFamily family, Source source) {
        this.json = json;
        this.family = family;
        this.layers = family.layers(json);
        this.config = family.config(json);
        this.source = source;
    }

    /**
     * Opens a checkpoint. Nothing stays open if this throws.
     *
     * @param path a directory with {@code config.json} and safetensors, or a GGUF file
     * @throws CheckpointException if it, its config.json or its tensors are missing or damaged, the family is not
     *     known, or config.json has a field that may change what experts compute and that the family isn't known to
     *     have
     */
    public static MoeCheckpoint open(Path path) {
        if (!Files.isDirectory(path)) {
            CheckpointFile.requireRegular(path);
        }
        if (Gguf.looksLike(path)) {
            GgufModel model = new GgufModel(Gguf.open(path));
            try {
                JsonFile json = model.config();
                return new MoeCheckpoint(json, ModelFamilies.of(json), new GgufFile(model));
            } catch (Throwable e) {
                model.gguf().close();
                throw e;
            }
        }
        if (!Files.isDirectory(path)) {
            throw new CheckpointException(
                    path,
                    Files.exists(path)
                            ? "is neither a directory with config.json and safetensors nor a GGUF file"
                            : "no such checkpoint");
        }
        JsonFile file = ConfigFile.of(path);
        JsonFile json = ModelFamilies.textConfig(file);
        ModelFamily family = ModelFamilies.of(json);
        family.config(json); // its complaints come before those about tensors
        ExpertFields.requireUnderstood(family, family.ofFirstLayer(json));
        WeightQuantization quantization = QuantizationConfig.of(file);
        Safetensors tensors = Safetensors.open(path);
        try {
            return new MoeCheckpoint(json, family, new Directory(json, family, tensors, quantization));
        } catch (Throwable e) {
            tensors.close();
            throw e;
        }
    }

    /**
     * What the MoE layers of a model are, without reading their tensors, for calls of one token.
     *
     * @param path config.json, the directory that holds it, or a GGUF file
     * @throws CheckpointException if the file can't be read, or the family is not known
     */
    public static FusedMoeConfig config(Path path) {
        if (!Files.isDirectory(path)) {
            CheckpointFile.requireRegular(path);
        }
        if (Gguf.looksLike(path)) {
            try (MoeCheckpoint opened = open(path)) {
                return opened.config;
            }
        }
        JsonFile json = ModelFamilies.textConfig(Files.isDirectory(path) ? ConfigFile.of(path) : JsonFile.read(path));
        ModelFamily family = ModelFamilies.of(json);
        ExpertFields.requireUnderstood(family, family.ofFirstLayer(json));
        return family.config(json);
    }

    /** The family, as config.json's {@code model_type} has it. */
    public String modelType() {
        return family.toString();
    }

    /** Layers of the model, dense ones included. */
    public int layers() {
        return layers;
    }

    /** The numbers of the MoE layers, ascending. */
    public List<Integer> moeLayers() {
        return IntStream.range(0, layers)
                .filter(n -> source.whyDense(n) == null)
                .boxed()
                .toList();
    }

    /** Layer n for calls of at most {@value FusedMoeConfig#DEFAULT_MAX_NUM_TOKENS} tokens; throws as the other. */
    public ExpertWeights layer(int n) {
        return layer(n, FusedMoeConfig.DEFAULT_MAX_NUM_TOKENS);
    }

    /**
     * The MoE weights of layer n, read from the mapped files row by row; {@link org.tornadomoe.quant.QuantizedWeights}
     * if they are int8 already.
     *
     * @param n from 0
     * @param maxNumTokens goes into the layer's configuration, at least 1
     * @throws IllegalArgumentException if maxNumTokens is not positive or too large for the layer's sizes
     * @throws CheckpointException if the layer does not exist or has no experts, or a tensor is missing or has the
     *     wrong shape or dtype
     * @throws IllegalStateException after {@link #close}
     */
    public ExpertWeights layer(int n, int maxNumTokens) {
        FusedMoeConfig first = config.withMaxNumTokens(maxNumTokens);
        try {
            LayerTensors tensors = tensors(n);
            FusedMoeConfig own = family.config(json, n).withMaxNumTokens(first.maxNumTokens());
            LayerShape.Latent latent = shape(n).latent();
            LayerWeights weights = latent == null
                    ? new LayerWeights(own, tensors, source::requireUnchanged)
                    : LayerWeights.inLatentSpace(own, latent, tensors, source::requireUnchanged);
            source.requireUnchanged(); // the router is read
            return weights.asStored();
        } catch (IllegalArgumentException e) {
            throw new CheckpointException(json.file(), "layer " + n + ": " + e.getMessage(), e);
        } catch (InternalError e) {
            source.requireUnchanged();
            throw e;
        }
    }

    /**
     * Some experts of layer n as a layer of their own, which is handed its routing: its expert i is the layer's {@code
     * ids[i]}, and it has no router. Shared experts are among those that can be asked for, from id E on. A token has at
     * most as many of them as it has in the layer ({@link FusedMoeConfig#pairsPerToken}); one alone where its weight is
     * on the input. Nothing is read of the others.
     *
     * @param ids each once, at least one, 0 to E + n - 1
     * @throws IllegalArgumentException if they aren't that
     * @throws CheckpointException as {@link #layer(int)}
     */
    public ExpertWeights experts(int n, int... ids) {
        ExpertWeights whole = layer(n);
        if (whole.latent() != null) {
            throw new CheckpointException(
                    json.file(), "layer " + n + ": its experts compute in a narrower space, and run as a whole alone");
        }
        int experts = whole.config().globalNumExperts();
        if (ids.length == 0
                || Arrays.stream(ids).distinct().count() < ids.length
                || Arrays.stream(ids).anyMatch(id -> id < 0 || id >= experts)) {
            throw new IllegalArgumentException(
                    "ids: expected experts from 0 to " + (experts - 1) + ", each once, got " + Arrays.toString(ids));
        }
        return switch (whole) {
            case StoredInt8 stored -> stored.only(ids);
            case LayerWeights weights -> weights.only(ids);
            default -> throw new IllegalStateException("not a layer of this checkpoint: " + whole);
        };
    }

    /** How files are laid out, for people: GGUF, or safetensors and who quantised them. */
    public String format() {
        return source.format();
    }

    /**
     * The bytes of layer n's tensors in the files, by their types' names there: {@code BF16}, {@code Q4_K}. Throws as
     * {@link #layer(int)}.
     */
    public Map<String, Long> bytes(int n) {
        requireMoe(n);
        return source.bytes(n, family.shape(json, n));
    }

    /** The names of all tensors, those of experts included. */
    public Set<String> names() {
        return source.names();
    }

    /**
     * A tensor outside of the MoE layers, an embedding, a projection or a norm, read by rows as floats, however it is
     * stored: the last dimension are the columns, all others the rows. Of one that the checkpoint has quantised, {@code
     * NAME.weight} is asked for, whatever its parts are called.
     *
     * @throws CheckpointException if there is no such tensor, or it is of a type that is not read
     * @throws IllegalStateException after {@link #close}
     */
    public WeightRows matrix(String name) {
        return source.matrix(name);
    }

    /**
     * What the configuration says: a field of config.json's (of its {@code text_config} where it has one), or a value
     * of a GGUF file's metadata.
     *
     * @return a String, a Boolean, a Number, a List or a Map; null if there is none
     */
    public @Nullable Object field(String name) {
        return source.field(name);
    }

    /** The tensors of layer n. Throws as {@link #layer(int)}. */
    LayerTensors tensors(int n) {
        return source.layer(n, shape(n));
    }

    /** What layer n has to hold. Throws as {@link #layer(int)}. */
    LayerShape shape(int n) {
        requireMoe(n);
        return family.shape(json, n);
    }

    private void requireMoe(int n) {
        if (n < 0 || n >= layers) {
            throw new CheckpointException(json.file(), "layer: expected 0 to " + (layers - 1) + ", got " + n);
        }
        String dense = source.whyDense(n);
        if (dense != null) {
            throw new CheckpointException(json.file(), "layer " + n + " is not an MoE layer: " + dense);
        }
    }

    /** All that config.json may call the family. */
    List<String> modelTypes() {
        return family.modelTypes();
    }

    /** The file, if it is GGUF; else null. */
    @Nullable
    Gguf gguf() {
        return source instanceof GgufFile file ? file.model.gguf() : null;
    }

    /**
     * Makes sure that what was read until now is what the files held when they were opened.
     *
     * @throws CheckpointException if one was changed
     */
    public void requireUnchanged() {
        source.requireUnchanged();
    }

    /** Unmaps the files. A second call does nothing. */
    @Override
    public void close() {
        source.close();
    }
}
