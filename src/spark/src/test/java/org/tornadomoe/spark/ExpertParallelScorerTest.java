package org.tornadomoe.spark;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.BufferUnderflowException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.FileTime;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Random;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.CountDownLatch;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.IntStream;
import java.util.stream.LongStream;
import org.apache.spark.Partition;
import org.apache.spark.TaskContext;
import org.apache.spark.api.java.function.MapFunction;
import org.apache.spark.api.java.function.MapPartitionsFunction;
import org.apache.spark.sql.Dataset;
import org.apache.spark.sql.Encoders;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.RowFactory;
import org.apache.spark.sql.SparkSession;
import org.apache.spark.sql.functions;
import org.apache.spark.sql.types.DataTypes;
import org.apache.spark.sql.types.StructType;
import org.apache.spark.util.LongAccumulator;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.checkpoint.MoeCheckpoint;
import org.tornadomoe.config.ExpertPlacementStrategy;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.quant.ExpertWeights;
import org.tornadomoe.quant.Int8Activations;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.QuantizedWeights;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.reference.Reference;
import org.tornadomoe.reference.Router;
import org.tornadomoe.reference.Routing;
import org.tornadomoe.reference.Stages;
import scala.jdk.javaapi.CollectionConverters;

/** The expert-parallel plan on Spark's local mode; the parts that need no Spark by themselves. */
@Timeout(300)
class ExpertParallelScorerTest {
    private static final Path MODELS = Path.of("src/test/resources/golden/hf").toAbsolutePath();
    private static final int H = SparkJob.H;
    private static final int ROWS = 70;

    private static final StructType SCHEMA = new StructType()
            .add("id", DataTypes.LongType)
            .add("hidden", DataTypes.createArrayType(DataTypes.FloatType, false), true);

    private static SparkSession spark;

    @BeforeAll
    static void start() {
        spark = SparkSession.builder()
                .master("local[2]")
                .config("spark.driver.bindAddress", "127.0.0.1")
                .config("spark.driver.host", "127.0.0.1")
                .config("spark.ui.enabled", false)
                .config("spark.log.level", "WARN")
                .config("spark.sql.shuffle.partitions", 3)
                // Code for some rows takes longer to make than it runs; the jobs of SparkPageIT have it.
                .config("spark.sql.codegen.wholeStage", false)
                .config("spark.sql.codegen.factoryMode", "NO_CODEGEN")
                .getOrCreate();
    }

    @AfterAll
    static void stop() {
        spark.stop();
    }

    /**
     * What tasks hold goes when they end, also after a job that failed; where a task didn't give it back this takes for
     * ever.
     */
    @AfterEach
    @Timeout(60)
    void nothingIsHeld() throws InterruptedException {
        for (Engine.unload(); !Engine.loaded().isEmpty(); Engine.unload()) {
            Thread.sleep(10);
        }
    }

    @TempDir
    static Path directory;

    /** A golden model, or phimoe: Mixtral's tensors under PhiMoE's routing. */
    private static Path path(String model) throws IOException {
        if (!model.equals("phimoe")) {
            return MODELS.resolve(model);
        }
        Path phimoe = Files.createDirectories(directory.resolve(model));
        String config = Files.readString(MODELS.resolve("mixtral/config.json"));
        Files.writeString(
                phimoe.resolve("config.json"),
                config.replace("\"mixtral\"", "\"phimoe\"").replace("noise\": 0.0", "noise\": 0.01"));
        Files.copy(MODELS.resolve("mixtral/model.safetensors"), phimoe.resolve("model.safetensors"));
        return phimoe;
    }

    private static MoeScorer scorer(String model) {
        return scorer(MODELS.resolve(model));
    }

    private static MoeScorer scorer(Path model) {
        return MoeScorer.of(model.toString(), 0, "hidden", "output")
                .withBackend("cpu")
                .withMaxTokens(16);
    }

    /** Every tenth row has no hidden state; in some of the partitions there is no row. */
    private static Dataset<Row> rows(int partitions) {
        MapFunction<Long, Row> make = id -> RowFactory.create(id, id % 10 == 9 ? null : SparkJob.hidden(id));
        return spark.range(0, ROWS, 1, partitions)
                .filter(functions.col("id").geq(0))
                .map(make, Encoders.row(SCHEMA));
    }

    /** Outputs by id. */
    private static Map<Long, float[]> outputs(Dataset<Row> scored) {
        Map<Long, float[]> outputs = new TreeMap<>();
        for (Row row : scored.select("id", "hidden", "output").collectAsList()) {
            long id = row.getLong(0);
            assertThat(row.isNullAt(1)).isEqualTo(id % 10 == 9);
            assertThat(row.isNullAt(2)).isEqualTo(id % 10 == 9);
            float[] output = new float[row.isNullAt(2) ? 0 : H];
            for (int c = 0; c < output.length; c++) {
                output[c] = (float) row.getList(2).get(c);
            }
            assertThat(outputs.put(id, output)).as("id " + id + " again").isNull();
        }
        assertThat(outputs.keySet())
                .containsExactlyElementsOf(LongStream.range(0, ROWS).boxed().toList());
        return outputs;
    }

    /** The layer's stages in float64 for the rows' tokens, row by row; weights rounded to float, as they cross. */
    private static Map<Long, Stages> expected(Path model, Int8Scheme scheme) {
        Map<Long, Stages> expected = new TreeMap<>();
        try (MoeCheckpoint checkpoint = MoeCheckpoint.open(model)) {
            ExpertWeights layer = checkpoint.layer(0);
            try (Int8Experts experts = QuantizedWeights.int8(layer, scheme, Progress.NONE)) {
                for (long id = 0; id < ROWS; id++) {
                    float[] x = SparkJob.hidden(id);
                    double[] logits = Router.logits(layer.config(), layer.router(), Numerics.widen(x), 1);
                    Routing routing = Router.route(layer.config(), layer.router(), logits, 1);
                    double[] rounded =
                            Arrays.stream(routing.weights()).map(w -> (float) w).toArray();
                    expected.put(
                            id,
                            Reference.forward(
                                    experts, x, logits, new Routing(1, routing.topK(), routing.ids(), rounded)));
                }
            }
        }
        return expected;
    }

    /**
     * To rounding, relative to the sum of the magnitudes of the weighted outputs of a token's experts: 2^-24 for
     * weights in float, as much for the owners' sums, and for either output. Sums in double differ by far less.
     */
    private static void assertNear(float[] output, double[] whole, Stages stages, String what) {
        double[] gemm2 = stages.gemm2();
        for (int c = 0; c < output.length; c++) {
            double magnitude = 0;
            for (int p = c; p < gemm2.length; p += H) {
                magnitude += Math.abs(gemm2[p]);
            }
            assertThat(Math.abs(output[c] - whole[c]))
                    .as("%s, column %d", what, c)
                    .isLessThanOrEqualTo(4.001 * magnitude * 0x1p-24);
        }
    }

    /** E = 8, but 16 + 1 for deepseek_v3 and 8 + 1 for llama4: mostly no multiple of the owners. */
    @ParameterizedTest
    @CsvSource({
        "mixtral, W8A8_CHANNEL, LINEAR, 1",
        "mixtral, W8A8_CHANNEL, LINEAR, 2",
        "mixtral, W8A8_CHANNEL, ROUND_ROBIN, 3",
        "mixtral, W8A8_CHANNEL, LINEAR, 8",
        "mixtral, W8A8_BLOCK, LINEAR, 3",
        "mixtral, W8A16_GROUP, LINEAR, 3",
        "qwen3_moe, W8A8_CHANNEL, LINEAR, 3",
        "gpt_oss, W8A8_CHANNEL, LINEAR, 3",
        "deepseek_v3, W8A8_CHANNEL, LINEAR, 3",
        "deepseek_v3, W8A8_CHANNEL, ROUND_ROBIN, 8",
        "deepseek_v3, W8A8_CHANNEL, LINEAR, 20",
        "phimoe, W8A8_CHANNEL, LINEAR, 3",
        "llama4, W8A8_CHANNEL, LINEAR, 1",
        "llama4, W8A8_CHANNEL, LINEAR, 3",
    })
    void itIsTheLayerSplit(String name, Int8Scheme scheme, ExpertPlacementStrategy placement, int owners)
            throws IOException {
        Path model = path(name);
        ExpertParallelScorer plan =
                scorer(model).withScheme(scheme).expertParallel("id", owners).withPlacement(placement);
        Map<Long, float[]> outputs = outputs(plan.transform(rows(4)));
        Map<Long, Stages> expected = expected(model, scheme);
        MoeOptions options =
                MoeOptions.DEFAULT.withScheme(scheme).withMaxTokens(1).withBackend("cpu");
        try (MoeLayer layer = MoeLayer.load(model, 0, options)) {
            outputs.forEach((id, output) -> {
                Stages stages = Objects.requireNonNull(expected.get(id));
                double[] whole = Numerics.widen(layer.forward(SparkJob.hidden(id)));
                if (name.equals("llama4") && output.length > 0) {
                    // Weights in double there, before the input is quantised.
                    assertThat(Numerics.relativeL2(Numerics.widen(output), whole))
                            .isLessThan(5e-3);
                    whole = stages.output();
                }
                assertNear(output, whole, stages, "id " + id);
            });
        }
    }

    /** The kernels are handed their routing, too. */
    @Test
    void ownersMayRunTaskGraphs() {
        MoeScorer scorer = scorer("gpt_oss").withBackend("triton").withMaxTokens(4);
        Map<Long, Stages> expected = expected(MODELS.resolve("gpt_oss"), Int8Scheme.W8A8_CHANNEL);
        List<Row> scored = scorer.expertParallel("id", 3)
                .transform(rows(1).limit(5))
                .select("id", "output")
                .collectAsList();
        assertThat(scored).hasSize(5);
        for (Row row : scored) {
            double[] output =
                    row.getList(1).stream().mapToDouble(value -> (float) value).toArray();
            Stages stages = Objects.requireNonNull(expected.get(row.getLong(0)));
            assertThat(Numerics.relativeL2(output, stages.output())).isLessThan(2e-2);
        }
    }

    @Test
    void outputsDoNotDependOnPartitionsToTheBit() {
        ExpertParallelScorer plan = scorer("mixtral").expertParallel("id", 3);
        Map<Long, float[]> expected = outputs(plan.transform(rows(1)));
        String partitions = spark.conf().get("spark.sql.shuffle.partitions");
        try {
            for (int n : new int[] {1, 7}) {
                spark.conf().set("spark.sql.shuffle.partitions", n);
                for (Dataset<Row> rows : List.of(
                        rows(2),
                        rows(ROWS + 3),
                        rows(3).orderBy(functions.col("id").desc()))) {
                    assertThat(outputs(plan.transform(rows)))
                            .usingRecursiveComparison()
                            .isEqualTo(expected);
                }
            }
        } finally {
            spark.conf().set("spark.sql.shuffle.partitions", partitions);
        }
    }

    @Test
    void anExecutorHoldsTheExpertsOfNoMoreOwnersThanItMay() {
        ExpertParallelScorer plan = scorer("mixtral").expertParallel("id", 8);
        outputs(plan.transform(rows(2)));
        assertThat(Engine.loaded()).hasSize(1);
        outputs(plan.withHeld(3).transform(rows(2)));
        assertThat(Engine.loaded()).hasSize(3);
    }

    @Test
    void theNextJobFindsWhatIsLoaded() {
        ExpertParallelScorer plan = scorer("mixtral").expertParallel("id", 3).withHeld(3);
        int before = Engine.loads();
        Map<Long, float[]> expected = outputs(plan.transform(rows(2)));
        assertThat(Engine.loads() - before).isEqualTo(3);
        assertThat(outputs(plan.transform(rows(3)))).usingRecursiveComparison().isEqualTo(expected);
        assertThat(Engine.loads() - before).isEqualTo(3);
        outputs(plan.withPlacement(ExpertPlacementStrategy.ROUND_ROBIN).transform(rows(2)));
        assertThat(Engine.loads() - before).as("other experts").isEqualTo(6);

        outputs(plan.scorer().transform(rows(2)));
        outputs(plan.scorer().transform(rows(3)));
        assertThat(Engine.loads() - before).as("the whole layer").isEqualTo(7);

        assertThat(MoeScorer.unload(spark)).isEqualTo(4);
        assertThat(Engine.loaded()).isEmpty();
        assertThat(outputs(plan.transform(rows(2)))).usingRecursiveComparison().isEqualTo(expected);
        assertThat(Engine.loads() - before).isEqualTo(10);
    }

    @Test
    void anOwnersTasksGoWhereItsExpertsAre() {
        ExpertParallelScorer plan =
                scorer("mixtral").expertParallel("id", 3).withCopies(0, 2).withCopies(1, 3);
        assertThat(IntStream.range(0, 6).map(plan::ownerOf)).containsExactly(0, 0, 1, 1, 1, 2);
        MoeScorer.unload(spark);
        outputs(plan.transform(rows(2)));
        int loaded = Engine.loaded().keySet().iterator().next().charAt(0) - '0';
        PlacedRows placed = new PlacedRows(plan.exchanged(rows(2)), plan);
        assertThat(placed.getNumPartitions()).isEqualTo(6);
        for (Partition partition : placed.partitions()) {
            List<String> preferred = CollectionConverters.asJava(placed.preferredLocations(partition));
            if (plan.ownerOf(partition.index()) == loaded) {
                assertThat(preferred).hasSize(1).first().asString().matches("executor_[^_]+_driver");
            } else {
                assertThat(preferred).isEmpty();
            }
        }
        ExpertParallelScorer other = scorer("mixtral").expertParallel("id", 7);
        PlacedRows others = new PlacedRows(other.exchanged(rows(2)), other);
        for (Partition partition : others.partitions()) {
            assertThat(others.preferredLocations(partition).isEmpty()).isTrue();
        }
    }

    /** The last word of an executor is the one that counts. */
    @Test
    void executorsSayWhatTheyHave() {
        PlacedRows.Loaded early = new PlacedRows.Loaded();
        early.add(new PlacedRows.Report("a", -1, Set.of(1)));
        early.add(new PlacedRows.Report("b", 5, Set.of(2)));
        PlacedRows.Loaded late = new PlacedRows.Loaded();
        late.add(new PlacedRows.Report("a", 1, Set.of(3)));
        late.add(new PlacedRows.Report("a", 0, Set.of(4)));
        late.merge(early);
        assertThat(late.value()).hasSize(2);
        assertThat(late.value().get("a")).isEqualTo(new PlacedRows.Report("a", 1, Set.of(3)));
        early.merge(late.copy());
        assertThat(early.value()).isEqualTo(late.value());
        early.reset();
        assertThat(early.isZero()).isTrue();
        assertThat(late.isZero()).isFalse();
    }

    @Test
    void whatWasNotUsedForTheLongestTimeGivesWay() {
        ExpertParallelScorer plan = scorer("mixtral").expertParallel("id", 8).withHeld(2);
        Engine whole = Engine.acquire(plan.scorer(), null);
        int before = Engine.loads();
        for (int owner : new int[] {0, 1, 0, 2, 0}) {
            Engine.acquire(plan, owner, null).release();
        }
        assertThat(Engine.loads() - before).isEqualTo(3);
        assertThat(Engine.loaded().keySet()).containsExactly("0@none", "2@none", "none");
        Engine used = Engine.acquire(plan, 0, null);
        Engine.acquire(plan, 3, null).release();
        Engine.acquire(plan, 4, null).release();
        assertThat(Engine.loaded().keySet()).containsExactly("0@none", "4@none", "none");
        used.release();
        whole.release();
    }

    /** A copy of a golden model that a test may change. */
    private static Path copy(String model, String name) throws IOException {
        Path copy = Files.createDirectories(directory.resolve(name));
        for (String file : List.of("config.json", "model.safetensors")) {
            Files.copy(MODELS.resolve(model).resolve(file), copy.resolve(file));
        }
        return copy;
    }

    /** Changes the first value of a float tensor. */
    private static void change(Path model, String tensor, float value) throws IOException {
        Path file = model.resolve("model.safetensors");
        ByteBuffer bytes = ByteBuffer.wrap(Files.readAllBytes(file)).order(ByteOrder.LITTLE_ENDIAN);
        int header = (int) bytes.getLong(0);
        Matcher offset = Pattern.compile("\"" + Pattern.quote(tensor) + "\":[^}]*\"data_offsets\":\\[(\\d+)")
                .matcher(new String(bytes.array(), 8, header, StandardCharsets.UTF_8));
        assertThat(offset.find()).isTrue();
        bytes.putFloat(8 + header + Integer.parseInt(offset.group(1)), value);
        Files.write(file, bytes.array());
    }

    /** Routing and experts, of owners and of the whole layer; first its time, then its size is another. */
    @Test
    void aCheckpointThatHasChangedIsLoadedAnew() throws IOException {
        Path model = copy("mixtral", "changing");
        Path weights = model.resolve("model.safetensors");
        FileTime time = Files.getLastModifiedTime(weights);
        ExpertParallelScorer plan = scorer(model).expertParallel("id", 3).withHeld(3);
        Map<Long, float[]> first = outputs(plan.transform(rows(2)));
        outputs(plan.scorer().transform(rows(2)));

        Path other = copy("mixtral", "changed");
        change(other, "model.layers.0.block_sparse_moe.gate.weight", 3);
        change(other, "model.layers.0.block_sparse_moe.experts.0.w1.weight", 3);
        Files.copy(other.resolve("model.safetensors"), weights, StandardCopyOption.REPLACE_EXISTING);
        Files.setLastModifiedTime(weights, FileTime.fromMillis(time.toMillis() + 1));
        ExpertParallelScorer changed = scorer(other).expertParallel("id", 3);
        Map<Long, float[]> expected = outputs(changed.transform(rows(2)));
        assertThat(expected).usingRecursiveComparison().isNotEqualTo(first);
        int before = Engine.loads();
        assertThat(outputs(plan.transform(rows(2)))).usingRecursiveComparison().isEqualTo(expected);
        assertThat(outputs(plan.scorer().transform(rows(2))))
                .usingRecursiveComparison()
                .isEqualTo(outputs(changed.scorer().transform(rows(2))));
        assertThat(Engine.loads() - before).isEqualTo(3 + 2);

        Path config = model.resolve("config.json");
        FileTime written = Files.getLastModifiedTime(config);
        Files.writeString(config, "\n", StandardOpenOption.APPEND);
        Files.setLastModifiedTime(config, written);
        outputs(plan.transform(rows(2)));
        assertThat(Engine.loads() - before).isEqualTo(3 + 2 + 3);
    }

    /** The memory of an owner's is bounded: who wants the new ones waits for the old to be given back. */
    @Test
    void whatIsStaleIsUsedByNobodyElse() throws Exception {
        Path model = copy("mixtral", "stale");
        ExpertParallelScorer plan = scorer(model).expertParallel("id", 2).withHeld(2);
        Engine whole = Engine.acquire(plan.scorer(), null);
        Engine owned = Engine.acquire(plan, 0, null);
        float[] expected = whole.layer().forward(SparkJob.hidden(1));
        change(model, "model.layers.0.block_sparse_moe.gate.weight", 3);
        Files.setLastModifiedTime(model.resolve("model.safetensors"), FileTime.fromMillis(1));

        Engine fresh = Engine.acquire(plan.scorer(), null);
        assertThat(fresh).isNotSameAs(whole);
        assertThat(whole.layer().forward(SparkJob.hidden(1))).isEqualTo(expected);
        whole.release();
        assertThatThrownBy(() -> whole.layer().forward(SparkJob.hidden(1))).isInstanceOf(IllegalStateException.class);

        List<Engine> got = new ArrayList<>();
        Thread other = Thread.ofPlatform().start(() -> got.add(Engine.acquire(plan, 0, null)));
        while (other.getState() != Thread.State.TIMED_WAITING) {
            assertThat(other.isAlive()).isTrue();
            Thread.onSpinWait();
        }
        owned.release();
        other.join();
        assertThat(got.getFirst()).isNotSameAs(owned);
        got.getFirst().release();
        fresh.release();
    }

    @Test
    void aCheckpointsFilesAreThoseThatItMayBeReadFrom() throws IOException {
        Path there = Files.createDirectories(directory.resolve("files"));
        for (String name : List.of(
                "config.json",
                "a.safetensors",
                "log.txt",
                "m-00001-of-00002.gguf",
                "m-00002-of-00002.gguf",
                "n.gguf")) {
            Files.writeString(there.resolve(name), name);
        }
        assertThat(CheckpointFiles.of(there).files().keySet()).containsExactly("a.safetensors", "config.json");
        assertThat(CheckpointFiles.of(there.resolve("m-00001-of-00002.gguf"))
                        .files()
                        .keySet())
                .containsExactly("m-00001-of-00002.gguf", "m-00002-of-00002.gguf");
        assertThat(CheckpointFiles.of(there.resolve("n.gguf")).files().get("n.gguf"))
                .isEqualTo(new CheckpointFiles.File(6, Files.getLastModifiedTime(there.resolve("n.gguf"))));
        assertThat(CheckpointFiles.of(there.resolve("none")).files()).isEmpty();
    }

    /** In the middle of an owner's rows; nothing is held after any test. */
    @Test
    void aTaskThatFailsGivesItsExpertsBack() {
        ExpertParallelScorer plan = scorer("mixtral").expertParallel("id", 1);
        MapFunction<Row, Row> spoil = row ->
                RowFactory.create(row.get(0), row.get(1), row.get(2), row.getLong(0) == 40 ? new byte[3] : row.get(3));
        Dataset<Row> sent = plan.exchanged(rows(1));
        assertThatThrownBy(() -> sent.map(spoil, Encoders.row(sent.schema()))
                        .mapPartitions((MapPartitionsFunction<Row, Row>) plan::compute, Encoders.row(sent.schema()))
                        .collectAsList())
                .hasRootCauseInstanceOf(BufferUnderflowException.class);
        assertThat(Engine.loaded().keySet()).containsExactly("0@none");
    }

    /** Without an interrupt, as is Spark's default, while another has what the job's tasks wait for. */
    @Test
    void aJobThatIsCancelledWaitsNoLonger() throws Exception {
        ExpertParallelScorer plan = scorer("mixtral").expertParallel("id", 2);
        Engine held = Engine.acquire(plan, 1, "other");
        CountDownLatch ended = new CountDownLatch(1);
        Thread job = Thread.ofPlatform().start(() -> {
            spark.sparkContext().setJobGroup("waits", "waits", false);
            try {
                plan.transform(rows(1)).collectAsList();
            } catch (Exception cancelled) {
                ended.countDown();
            }
        });
        while (waiting() == 0) {
            Thread.sleep(10);
        }
        spark.sparkContext().cancelJobGroup("waits");
        job.join();
        assertThat(ended.getCount()).isZero();
        while (waiting() > 0) {
            Thread.sleep(10);
        }
        assertThat(Engine.loaded().keySet()).containsExactly("1@other");
        held.release();
    }

    /** Threads that wait for experts. */
    private static long waiting() {
        return Thread.getAllStackTraces().values().stream()
                .filter(frames -> Arrays.stream(frames)
                        .anyMatch(frame -> frame.getClassName().equals(Engine.class.getName())
                                && frame.getMethodName().equals("await")))
                .count();
    }

    /** Every row has expert 0 and the shared one. */
    @Test
    void theRowsOfAPopularOwnerAreSplit() throws IOException {
        Path model = copy("deepseek_v3", "skewed");
        change(model, "model.layers.0.mlp.gate.e_score_correction_bias", 100);
        LongAccumulator read = spark.sparkContext().longAccumulator();
        MapFunction<Row, Row> count = row -> {
            read.add(1);
            return row;
        };
        Dataset<Row> rows = rows(4).map(count, Encoders.row(SCHEMA));
        ExpertParallelScorer plan = scorer(model).expertParallel("id", 4);
        int tokens = ROWS - ROWS / 10;
        List<Long> perOwner = plan.rowsPerOwner(rows(4)).collectAsList().stream()
                .map(row -> row.getLong(1))
                .toList();
        assertThat(perOwner).hasSize(4).startsWith((long) tokens).endsWith((long) tokens);
        assertThat(sizes(plan.exchanged(rows(4)))).isEqualTo(perOwner);
        Dataset<Row> scored = plan.transform(rows);
        assertThat(read.value()).as("lazy").isZero();
        Map<Long, float[]> expected = outputs(scored);
        assertThat(read.value()).isEqualTo(2 * ROWS);
        assertThat(outputs(scored)).usingRecursiveComparison().isEqualTo(expected);
        assertThat(read.value()).as("routed once").isEqualTo(3 * ROWS);

        ExpertParallelScorer split = plan.withCopies(0, 4).withCopies(3, 3).withHeld(2);
        List<Long> sizes = sizes(split.exchanged(rows(4)));
        assertThat(sizes).hasSize(4 + 1 + 1 + 3);
        assertThat(sizes.subList(4, 6)).isEqualTo(perOwner.subList(1, 3));
        for (List<Long> copies : List.of(sizes.subList(0, 4), sizes.subList(6, 9))) {
            assertThat(copies.stream().mapToLong(Long::longValue).sum()).isEqualTo(tokens);
            assertThat(Collections.max(copies)).isLessThan(2 * tokens / copies.size());
        }
        read.reset();
        assertThat(outputs(split.transform(rows))).usingRecursiveComparison().isEqualTo(expected);
        assertThat(read.value()).isEqualTo(2 * ROWS);
        assertThat(outputs(plan.withCopies(5).transform(rows(1))))
                .usingRecursiveComparison()
                .isEqualTo(expected);
    }

    /** Rows of each partition; the first to the last owner's one after the other. */
    private static List<Long> sizes(Dataset<Row> sent) {
        MapPartitionsFunction<Row, Row> size = partition -> {
            long rows = 0;
            int owner = -1;
            while (partition.hasNext()) {
                Row row = partition.next();
                assertThat(rows == 0 || row.getInt(1) == owner).isTrue();
                owner = row.getInt(1);
                rows++;
            }
            return List.of(RowFactory.create(TaskContext.getPartitionId(), owner, rows))
                    .iterator();
        };
        StructType schema = new StructType()
                .add("partition", DataTypes.IntegerType)
                .add("owner", DataTypes.IntegerType)
                .add("rows", DataTypes.LongType);
        List<Row> sizes = sent.mapPartitions(size, Encoders.row(schema))
                .orderBy("partition")
                .collectAsList();
        assertThat(sizes.stream().map(row -> row.getInt(1)).filter(owner -> owner >= 0))
                .isSorted();
        return sizes.stream().map(row -> row.getLong(2)).toList();
    }

    @Test
    void anOwnersMemoryIsThatOfItsPart() {
        long[] bytes = new long[2];
        for (int i = 0; i < 2; i++) {
            ExpertParallelScorer plan = scorer("mixtral").withMaxTokens(1).expertParallel("id", i == 0 ? 1 : 4);
            Engine engine = Engine.acquire(plan, 0, null);
            try {
                assertThat(engine.layer().config().numExperts()).isEqualTo(i == 0 ? 8 : 2);
                bytes[i] = engine.layer().deviceBytes();
            } finally {
                engine.release();
            }
        }
        // Weights and scales; activations of a token are some thousand bytes.
        assertThat(bytes[0]).isGreaterThan(8 * 3 * 128 * 192);
        assertThat(bytes[1]).isLessThan(bytes[0] / 4 + 16384);
    }

    @Test
    void aTaskWaitsForAnEngineThatNobodyUses() throws InterruptedException {
        ExpertParallelScorer plan = scorer("mixtral").expertParallel("id", 8);
        Engine first = Engine.acquire(plan, 0, null);
        Engine same = Engine.acquire(plan, 0, null);
        assertThat(same).isSameAs(first);
        List<Engine> got = new ArrayList<>();
        Thread other = Thread.ofPlatform().start(() -> got.add(Engine.acquire(plan, 1, null)));
        first.release();
        while (other.getState() != Thread.State.TIMED_WAITING) {
            assertThat(other.isAlive()).isTrue();
            Thread.onSpinWait();
        }
        assertThat(Engine.loaded().keySet()).containsExactly("0@none");
        same.release();
        other.join();
        assertThat(Engine.loaded().keySet()).containsExactly("1@none");
        got.getFirst().release();
    }

    private static List<Row> routed(ExpertParallelScorer plan, Row... rows) {
        List<Row> all = new ArrayList<>();
        Iterator<Row> routed =
                new RoutedRows(List.of(rows).iterator(), TokenRouter.of(plan.scorer(), plan.partitioning()), plan);
        routed.forEachRemaining(all::add);
        return all;
    }

    /** Once to an owner, in int8 where that is what the experts see. */
    @Test
    void aRowCrossesOnceToEachOwner() {
        for (long id = 0; id < 20; id++) {
            Row row = RowFactory.create(id, SparkJob.hidden(id));
            List<Row> alone = routed(scorer("mixtral").expertParallel("id", 1), row);
            assertThat(alone).hasSize(1);
            assertThat((byte[]) alone.getFirst().get(3)).hasSize(4 + 2 * 8 + 1 + 4 + H);
            SentToken whole = SentToken.of(alone.getFirst().getAs(3));
            for (Int8Scheme scheme : List.of(Int8Scheme.W8A8_CHANNEL, Int8Scheme.W8A16_CHANNEL)) {
                List<Row> sent = routed(scorer("mixtral").withScheme(scheme).expertParallel("id", 4), row);
                int owners = (int)
                        IntStream.of(whole.experts()).map(e -> e / 2).distinct().count();
                assertThat(sent).hasSize(owners);
                int pairs = 0;
                for (Row one : sent) {
                    assertThat(one.getInt(2)).isEqualTo(owners);
                    SentToken token = SentToken.of(one.getAs(3));
                    for (int p = 0; p < token.experts().length; p++) {
                        int expert = 2 * one.getInt(1) + token.experts()[p];
                        int at = Arrays.stream(whole.experts()).boxed().toList().indexOf(expert);
                        assertThat(token.weights()[p]).isEqualTo(whole.weights()[at]);
                        pairs++;
                    }
                    assertThat(token.hidden())
                            .isEqualTo(scheme == Int8Scheme.W8A16_CHANNEL ? SparkJob.hidden(id) : whole.hidden());
                }
                assertThat(pairs).isEqualTo(2);
            }
        }
    }

    /** What is sent in int8 becomes the same integers and the same scale again, and nearly everything is. */
    @Test
    void whatCrossesInInt8IsQuantizedToTheSame() {
        Random random = new Random(5);
        int int8 = 0;
        for (int n = 0; n < 20000; n++) {
            float[] x = new float[8];
            for (int c = 0; c < x.length; c++) {
                x[c] = (float) (random.nextGaussian() * Math.pow(2, random.nextInt(-20, 20) * (n % 2)));
            }
            switch (n) {
                case 0 -> Arrays.fill(x, 0);
                case 1 -> x[3] = Float.NaN;
                case 2 -> x[3] = Float.POSITIVE_INFINITY;
                case 3 -> Arrays.fill(x, -1e-42f);
                case 4 -> x[7] = Float.MAX_VALUE;
                default -> {}
            }
            byte[] sent = SentToken.toBytes(new int[] {1}, new float[] {1}, 1, SentToken.hidden(x, 0, 8, true));
            int8 += sent.length == 4 + 8 + 1 + 4 + 8 ? 1 : 0;
            byte[] expected = new byte[8];
            byte[] got = new byte[8];
            float scale = Int8Activations.quantize(x, 0, 8, expected, 0);
            float scaleThere = Int8Activations.quantize(SentToken.of(sent).hidden(), 0, 8, got, 0);
            assertThat(got).isEqualTo(expected);
            assertThat(Float.floatToIntBits(scaleThere)).isEqualTo(Float.floatToIntBits(scale));
        }
        assertThat(int8).isGreaterThan(19900);
    }

    private static ReducedRows reduced(Row... parts) {
        return new ReducedRows(List.of(parts).iterator(), 1);
    }

    private static Row part(long id, int owner, int of, float... sum) {
        return RowFactory.create(id, owner, of, SentToken.toBytes(sum, 0, sum.length), null);
    }

    private static Row whole(long id, float @Nullable [] hidden) {
        return RowFactory.create(id, ReducedRows.ROW, 0, null, RowFactory.create(id, hidden));
    }

    @Test
    void partsAreAddedInTheOrderOfOwners() {
        float[] x = {1, 2};
        ReducedRows rows = reduced(
                whole(1, x), part(1, 0, 3, 1, 1e8f), part(1, 2, 3, 2, 3), part(1, 5, 3, 3, -1e8f), whole(2, null));
        assertThat(rows.next().get(2)).isEqualTo(new float[] {6, 3});
        assertThat(rows.next().get(2)).isNull();
        assertThat(rows.hasNext()).isFalse();
    }

    /** What would be a wrong row is none. */
    @Test
    void rowsThatChangeBetweenReadingsAreRefused() {
        float[] x = {1, 2};
        for (Row[] parts : new Row[][] {
            {whole(1, x)},
            {whole(1, x), part(1, 0, 2, 1, 1)},
            {whole(1, x), part(1, 0, 2, 1, 1), part(1, 0, 2, 1, 1)},
            {whole(1, x), part(1, 0, 2, 1, 1), part(1, 1, 3, 1, 1)},
            {whole(1, x), part(1, 1, 2, 1, 1), part(1, 0, 2, 1, 1)},
            {whole(1, null), part(1, 0, 1, 1, 1)},
            {part(1, 0, 1, 1, 1)},
        }) {
            assertThatThrownBy(() -> reduced(parts).next())
                    .isInstanceOf(IllegalStateException.class)
                    .hasMessageStartingWith("id 1: expected the same hidden state whenever the rows are read, got ");
        }
    }

    @Test
    void wrongIdsAndSettingsAreNamed() {
        MoeScorer scorer = scorer("mixtral");
        ExpertParallelScorer plan = scorer.expertParallel("id", 2);
        Dataset<Row> twice = rows(2).union(rows(1).filter(functions.col("id").equalTo(17)));
        assertThatThrownBy(() -> plan.transform(twice).collectAsList())
                .rootCause()
                .hasMessage("id: expected another value in each row, got 17 again");
        Dataset<Row> none = spark.createDataFrame(
                List.of(RowFactory.create(1L, SparkJob.hidden(1)), RowFactory.create(null, SparkJob.hidden(2))),
                SCHEMA);
        assertThatThrownBy(() -> plan.transform(none).collectAsList())
                .rootCause()
                .hasMessage("id: expected a value in each row, got null");
        assertThatThrownBy(() -> scorer.expertParallel("x", 2).transform(rows(1)))
                .hasMessage("id: expected one of id, hidden, got 'x'");
        assertThatThrownBy(() -> scorer.expertParallel("id", 0))
                .hasMessage("owners: expected a positive number, got 0");
        assertThatThrownBy(() -> plan.withHeld(0)).hasMessage("held: expected a positive number, got 0");
        assertThatThrownBy(() -> plan.withCopies(0)).hasMessage("copies: expected a positive number, got 0");
        assertThatThrownBy(() -> plan.withCopies(2, 3)).hasMessage("owner: expected 0 to 1, got 2");
        assertThatThrownBy(() -> new ExpertParallelScorer(scorer, "id", 2, plan.placement(), 1, List.of(1)))
                .hasMessage("copies: expected 2 numbers, of an owner each, got 1");
    }
}
