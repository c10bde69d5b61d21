package org.tornadomoe.spark;

import java.io.Serializable;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Collections;
import java.util.Iterator;
import java.util.List;
import java.util.Objects;
import org.apache.spark.SparkContext;
import org.apache.spark.TaskContext;
import org.apache.spark.api.java.JavaRDD;
import org.apache.spark.api.java.function.MapPartitionsFunction;
import org.apache.spark.resource.ResourceInformation;
import org.apache.spark.resource.ResourceProfile;
import org.apache.spark.sql.Dataset;
import org.apache.spark.sql.Encoders;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.SparkSession;
import org.apache.spark.sql.types.ArrayType;
import org.apache.spark.sql.types.DataType;
import org.apache.spark.sql.types.DataTypes;
import org.apache.spark.sql.types.StructType;
import org.apache.spark.util.TaskCompletionListener;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.config.ExpertPlacementStrategy;
import org.tornadomoe.config.Int8Scheme;

/**
 * Runs a layer on a column of hidden states, {@code array<float>} of the layer's width, one token per row, and adds a
 * column of its outputs. A row with null gets null. A row's output depends on that row alone, to the bit: not on its
 * neighbours, the partition or repeated computation. So Spark may lose executors and run tasks again.
 *
 * {@snippet :
 * Dataset<Row> scored = MoeScorer.of("/models/Qwen3-30B-A3B", 0, "hidden", "output")
 *         .withDevice("cuda")
 *         .transform(rows);
 * }
 *
 * <p>Each executor loads the layer once for each GPU address that Spark gives its tasks (resource {@code gpu}), or once
 * if it gives none, from a path that all executors have. Files are mapped; nothing is broadcast. The layer stays loaded
 * for later jobs until the executor ends or {@link #unload} is called. A task that finds changed sizes or modification
 * times of the checkpoint's files loads it anew; the files must not change while a job runs. Tasks of the same GPU
 * share its layer and take turns.
 *
 * @param checkpoint the path of a checkpoint, on every executor
 * @param layer the decoder layer's number, from 0
 * @param input the column of hidden states
 * @param output the column to add
 * @param scheme the quantisation scheme; not {@code w8a8_tensor}, with which a row would depend on its neighbours
 * @param backend as in the layer's options
 * @param device null for the best device; a TornadoVM backend ({@code cuda}), to use the GPU that Spark gave the task
 *     ({@code cuda:0}); or a device with its number
 * @param maxTokens the maximum number of rows per call
 * @param latency the target time of a call: a call takes as many rows as it allows, at least one
 */
public record MoeScorer(
        String checkpoint,
        int layer,
        String input,
        String output,
        Int8Scheme scheme,
        String backend,
        @Nullable String device,
        int maxTokens,
        Duration latency)
        implements Serializable {
    private static final long serialVersionUID = 1L;

    /** The Spark resource that tasks should get. */
    public static final String GPU = "gpu";

    /** Checks what can be checked without the layer. */
    public MoeScorer {
        Objects.requireNonNull(checkpoint, "checkpoint");
        Objects.requireNonNull(input, "input");
        Objects.requireNonNull(output, "output");
        Objects.requireNonNull(backend, "backend");
        if (scheme == Int8Scheme.W8A8_TENSOR) {
            throw new IllegalArgumentException(
                    "scheme: expected one whose results don't depend on the batch, got " + scheme);
        }
        if (maxTokens < 1) {
            throw new IllegalArgumentException("maxTokens: expected a positive number, got " + maxTokens);
        }
        if (!latency.isPositive()) {
            throw new IllegalArgumentException("latency: expected more than zero, got " + latency);
        }
    }

    /** A scorer in {@code w8a8_channel} on the best device, with calls of up to 256 rows and about 50 ms. */
    public static MoeScorer of(String checkpoint, int layer, String input, String output) {
        return new MoeScorer(
                checkpoint, layer, input, output, Int8Scheme.W8A8_CHANNEL, "auto", null, 256, Duration.ofMillis(50));
    }

    public MoeScorer withScheme(Int8Scheme scheme) {
        return new MoeScorer(checkpoint, layer, input, output, scheme, backend, device, maxTokens, latency);
    }

    public MoeScorer withBackend(String backend) {
        return new MoeScorer(checkpoint, layer, input, output, scheme, backend, device, maxTokens, latency);
    }

    public MoeScorer withDevice(@Nullable String device) {
        return new MoeScorer(checkpoint, layer, input, output, scheme, backend, device, maxTokens, latency);
    }

    public MoeScorer withMaxTokens(int maxTokens) {
        return new MoeScorer(checkpoint, layer, input, output, scheme, backend, device, maxTokens, latency);
    }

    public MoeScorer withLatency(Duration latency) {
        return new MoeScorer(checkpoint, layer, input, output, scheme, backend, device, maxTokens, latency);
    }

    /**
     * A plan for a layer that no executor can hold.
     *
     * @param id a column with a different, non-null value in each row
     * @param owners number of owners among which the experts are partitioned, 1 or more
     */
    public ExpertParallelScorer expertParallel(String id, int owners) {
        return new ExpertParallelScorer(
                this, id, owners, ExpertPlacementStrategy.LINEAR, 1, Collections.nCopies(Math.max(owners, 0), 1));
    }

    /**
     * The rows, each with its output. Lazy, like other Spark transformations.
     *
     * @throws IllegalArgumentException if the input column is missing or isn't {@code array<float>}, or the output
     *     column already exists
     * @throws UnsupportedOperationException if the layer's router reads more than hidden states; thrown here if the
     *     checkpoint is on this machine too, else by the first task
     */
    public Dataset<Row> transform(Dataset<Row> rows) {
        requireHiddenStatesAlone();
        StructType schema = outputSchema(rows.schema());
        int column = rows.schema().fieldIndex(input);
        MapPartitionsFunction<Row, Row> score = partition -> score(partition, column);
        return rows.mapPartitions(score, Encoders.row(schema));
    }

    /** Like {@link #transform(Dataset)}, in tasks with their own resource profile. */
    public Dataset<Row> transform(Dataset<Row> rows, ResourceProfile profile) {
        requireHiddenStatesAlone();
        StructType schema = outputSchema(rows.schema());
        int column = rows.schema().fieldIndex(input);
        JavaRDD<Row> scored = rows.toJavaRDD()
                .mapPartitions(partition -> score(partition, column))
                .withResources(profile);
        return rows.sparkSession().createDataFrame(scored, schema);
    }

    /** The schema after {@link #transform(Dataset)}. Throws what that method throws. */
    public StructType outputSchema(StructType schema) {
        int column = schema.getFieldIndex(input).isEmpty() ? -1 : schema.fieldIndex(input);
        if (column < 0) {
            throw new IllegalArgumentException(
                    "input: expected one of " + String.join(", ", schema.fieldNames()) + ", got '" + input + "'");
        }
        DataType type = schema.fields()[column].dataType();
        if (!(type instanceof ArrayType array && array.elementType().equals(DataTypes.FloatType))) {
            throw new IllegalArgumentException(
                    "input: expected a column of array<float>, '" + input + "' is " + type.simpleString());
        }
        if (schema.getFieldIndex(output).isDefined()) {
            throw new IllegalArgumentException("output: expected a new column, '" + output + "' is there already");
        }
        return schema.add(output, DataTypes.createArrayType(DataTypes.FloatType, false), true);
    }

    /** Checks the layer's router before any task does, if the checkpoint is on this machine. */
    void requireHiddenStatesAlone() {
        Path path = Path.of(checkpoint);
        if (Files.exists(path)) {
            try (MoeCheckpoint opened = MoeCheckpoint.open(path)) {
                TokenRouter.layer(opened, layer);
            }
        }
    }

    private Iterator<Row> score(Iterator<Row> partition, int column) {
        TaskContext task = TaskContext.get();
        Engine engine = Engine.acquire(this, address(task));
        atEnd(task, engine::release);
        return new ScoredRows(partition, column, engine, latency.toNanos());
    }

    /** Runs something at a task's end, whether it succeeded, failed or was killed. */
    static void atEnd(@Nullable TaskContext task, Runnable then) {
        if (task != null) {
            TaskCompletionListener listener = ended -> then.run();
            task.addTaskCompletionListener(listener);
        }
    }

    /**
     * Unloads layers and owners' experts that this class or {@link ExpertParallelScorer} has loaded in the executors
     * and that no task uses. Later jobs load what they need.
     *
     * <p>It runs a job with one task per core, so it reaches the executors that have a free core (and a GPU, if all
     * tasks get one). While nothing else runs, these are all executors of the session's own resource profile. Executors
     * of other profiles free their memory when they end.
     *
     * @return the number of layers and owners' experts unloaded
     */
    public static int unload(SparkSession spark) {
        SparkContext context = spark.sparkContext();
        int tasks =
                Math.max(context.defaultParallelism(), context.statusTracker().getExecutorInfos().length);
        MapPartitionsFunction<Long, Integer> unload =
                none -> List.of(Engine.unload()).iterator();
        return spark.range(0, tasks, 1, tasks).mapPartitions(unload, Encoders.INT()).collectAsList().stream()
                .mapToInt(Integer::intValue)
                .sum();
    }

    /** The GPU address of a task; the first if it has several. */
    static @Nullable String address(@Nullable TaskContext task) {
        ResourceInformation gpus = task == null ? null : task.resourcesJMap().get(GPU);
        return gpus == null || gpus.addresses().length == 0 ? null : gpus.addresses()[0];
    }

    /** The device for a task with that GPU address. */
    @Nullable
    String deviceAt(@Nullable String address) {
        return device == null || device.contains(":") || address == null ? device : device + ":" + address;
    }
}
