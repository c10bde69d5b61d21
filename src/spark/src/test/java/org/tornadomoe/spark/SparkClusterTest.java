package org.tornadomoe.spark;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.DataInputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import java.util.regex.Pattern;
import org.apache.spark.sql.SparkSession;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.MethodOrderer;
import org.junit.jupiter.api.Order;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestMethodOrder;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.condition.EnabledIfEnvironmentVariable;
import org.junit.jupiter.api.io.CleanupMode;
import org.junit.jupiter.api.io.TempDir;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.reference.Numerics;

/**
 * A standalone cluster on loopback, one for all tests on the CPU: a master, and two workers that each declare a GPU,
 * whose executors score rows, all for one application. Every one of these is a process of its own; the driver
 * ({@link SparkJob}) is this JVM. What happened in which order is written to {@code target/spark-cluster}.
 */
@Timeout(value = 8, unit = TimeUnit.MINUTES)
@TestMethodOrder(MethodOrderer.OrderAnnotation.class)
class SparkClusterTest {
    private static final Path CHECKPOINT =
            Path.of("src/test/resources/golden/hf/mixtral").toAbsolutePath();

    @TempDir(cleanup = CleanupMode.ON_SUCCESS)
    static Path clusters;

    @TempDir(cleanup = CleanupMode.ON_SUCCESS)
    Path directory;

    /** Executors have C1's code, and that has none for vectors. */
    private static final String VECTORS = "--add-modules jdk.incubator.vector -Dtornadomoe.arithmetic=scalar";

    private static SparkCluster cluster;
    private static @Nullable SparkSession running;

    /** By the address of its GPU. */
    private static final Process[] WORKERS = new Process[2];

    @BeforeAll
    static void start() throws Exception {
        cluster = new SparkCluster(clusters);
        cluster.startMaster();
        for (int gpu = 0; gpu < WORKERS.length; gpu++) {
            WORKERS[gpu] = cluster.startWorker("" + gpu);
        }
    }

    /** What each worker says once it is registered; another takes the place of one that was killed. */
    private static List<String> workers() throws Exception {
        List<String> registered = new ArrayList<>();
        for (int gpu = 0; gpu < WORKERS.length; gpu++) {
            if (!WORKERS[gpu].isAlive()) {
                WORKERS[gpu] = cluster.startWorker("" + gpu);
            }
            registered.add("worker " + gpu + " registered: " + cluster.registration("" + gpu));
        }
        return registered;
    }

    @AfterAll
    static void stop() {
        end();
        cluster.close();
    }

    /** Ends the application. */
    private static void end() {
        if (running != null) {
            running.stop();
            running = null;
        }
    }

    /** The application, as soon as every worker has an executor for it. */
    private static SparkSession application(SparkCluster cluster, String executorOptions) throws Exception {
        if (running == null) {
            SparkSession.Builder builder = SparkSession.builder().appName("test");
            settings(cluster, executorOptions).forEach(builder::config);
            running = builder.getOrCreate();
        }
        SparkSession spark = running;
        while (spark.sparkContext().defaultParallelism() < cluster.cores()) {
            Thread.sleep(50);
        }
        return spark;
    }

    @Test
    void aWorkerThatIsKilledInTheMiddleCostsNoRow() throws Exception {
        int rows = 480;
        Path out = directory.resolve("out");
        Log log = new Log("rows");
        int left = runAndKill(log, 4, rows, 24, out, 0);
        // Each executor loads for the one GPU that its tasks were given; the one left is the other worker's.
        assertThat(log.lines).anyMatch(line -> line.startsWith("loaded: [{" + left + "=CpuExperts on cpu "));
        assertRows(out, rows);
        assertRows(Path.of(out + ".profile"), rows);
        log.add(rows + " rows, twice: all there, none twice, each with the bits of a layer called directly");
    }

    /**
     * After the six tasks that route and the six that bring the rows, among those of owners: what these were sent and
     * have made is lost, too. The second test, since both executors are equally quick as long as they are equally old.
     */
    @Test
    @Order(2)
    void aWorkerThatIsKilledAmongOwnersCostsNoRow() throws Exception {
        int rows = 480;
        Path out = directory.resolve("out");
        Log log = new Log("owners");
        int left = runAndKill(log, 14, rows, 6, out, 8);
        assertThat(log.lines).anyMatch(line -> line.matches("loaded: \\[\\{\\d@" + left + "=CpuExperts on cpu .*"));
        // Stages that were done before are run again, as far as their output was there.
        assertThat(log.lines)
                .anyMatch(line -> line.matches("task \\S+ in stage \\d+\\.[1-9] on executor \\d+: Success"));
        Map<Long, float[]> got = read(out);
        assertThat(got.keySet()).hasSize(rows);
        assertThat(read(Path.of(out + ".profile"))).usingRecursiveComparison().isEqualTo(got);
        MoeOptions options = MoeOptions.DEFAULT.withMaxTokens(1).withBackend("cpu");
        double worst = 0;
        try (MoeLayer layer = MoeLayer.load(CHECKPOINT, 0, options)) {
            for (var row : got.entrySet()) {
                long id = row.getKey();
                if (id % 100 == 99) {
                    assertThat(row.getValue()).isEmpty();
                } else {
                    double[] whole = Numerics.widen(layer.forward(SparkJob.hidden(id)));
                    worst = Math.max(worst, Numerics.relativeL2(Numerics.widen(row.getValue()), whole));
                }
            }
        }
        assertThat(worst).isLessThan(3e-7);
        log.add(String.format(
                Locale.ROOT,
                "%d rows, twice: all there, none twice, with the same bits both times; at most %.1e from the whole"
                        + " layer (relative L2)",
                rows,
                worst));
    }

    /**
     * A second job loads nothing, since owners' tasks go to the executors that have their experts. The first test,
     * since executors count what they load.
     */
    @Test
    @Order(1)
    void executorsKeepWhatTheyHaveAndGiveItBack() throws Exception {
        workers();
        List<String> lines = Collections.synchronizedList(new ArrayList<>());
        new SparkJob(CHECKPOINT, "cpu", "any", 400, 8, directory.resolve("out"), 2)
                .run(application(cluster, VECTORS), lines::add);
        String log = String.join("\n", lines);
        String loaded = log.lines()
                .filter(line -> line.startsWith("loaded: "))
                .findFirst()
                .orElse("");
        for (String engine : List.of("0@[01]", "1@[01]")) {
            assertThat(loaded).containsPattern("[{ ]" + engine + "=CpuExperts on cpu");
        }
        int loads = Pattern.compile("of (\\d+) loaded")
                .matcher(loaded)
                .results()
                .mapToInt(found -> Integer.parseInt(found.group(1)))
                .sum();
        assertThat(loads).as(log).isEqualTo(2);
        assertThat(log).containsPattern("unloaded: 2, left: \\[\\{} of [^{]*(\\{} of [^{]*)?\\]");
    }

    /**
     * What happened; in a file with the seconds since its beginning, tasks that ended alike one after the other in one
     * line.
     */
    private static final class Log {
        private final Path file;
        private final List<String> lines = new ArrayList<>();
        private final List<String> written = new ArrayList<>();
        private String last = "";
        private final long start = System.nanoTime();

        Log(String name) throws IOException {
            file = Files.createDirectories(Path.of("target/spark-cluster")).resolve(name + ".log");
            written.add("Java " + Runtime.version() + ", " + System.getProperty("os.name") + ", "
                    + Runtime.getRuntime().availableProcessors() + " processors");
        }

        void add(String line) {
            lines.add(line);
            String tail = line.replaceFirst("^task \\S+", "");
            if (!tail.equals(line) && tail.equals(last)) {
                String id = line.substring(4, line.length() - tail.length());
                written.add(written.removeLast().replace(tail, id + tail));
            } else {
                written.add(String.format(Locale.ROOT, "%6.1f s  %s", (System.nanoTime() - start) / 1e9, line));
            }
            last = tail;
            try {
                Files.write(file, written);
            } catch (IOException e) {
                throw new UncheckedIOException(e);
            }
        }
    }

    /** Kills the worker that ran the last of so many tasks, after it; the number of the one left. */
    private int runAndKill(Log log, int tasks, int rows, int partitions, Path out, int owners) throws Exception {
        workers().forEach(log::add);
        Killer killer = new Killer(log, tasks);
        new SparkJob(CHECKPOINT, "cpu", "any", rows, partitions, out, owners)
                .run(application(cluster, VECTORS), killer);
        int killed = killer.killed;
        assertThat(killed).isNotNegative();
        assertThat(log.lines)
                .anyMatch(line -> line.matches("executor \\d+ lost: .*"))
                .anyMatch(line -> line.matches("unloaded: [12], left: \\[\\{} of \\d+ loaded\\]"));
        return 1 - killed;
    }

    /** Hears of a job's tasks, and kills the worker that ran the last of so many. */
    private static final class Killer implements Consumer<String> {
        private final Log log;
        private int left;
        private String application = "";
        private int killed = -1;

        Killer(Log log, int tasks) {
            this.log = log;
            this.left = tasks;
        }

        @Override
        public synchronized void accept(String line) {
            log.add(line);
            if (line.startsWith("application ")) {
                application = line.substring(12);
            }
            if (line.startsWith("task") && line.endsWith("Success") && --left == 0) {
                String executor = line.replaceFirst(".* on executor (\\d+): .*", "$1");
                killed = cluster.workerOf(application, executor);
                SparkCluster.kill(WORKERS[killed]);
                log.add("killed: worker " + killed + " and its executor " + executor);
            }
        }
    }

    @Test
    @EnabledIfEnvironmentVariable(
            named = "TORNADOVM_HOME",
            matches = ".+",
            disabledReason = "no TornadoVM SDK (TORNADOVM_HOME is not set)")
    void executorsRunOnTornadoVm() throws Exception {
        end();
        try (SparkCluster own = new SparkCluster(directory)) {
            own.startMaster();
            own.startWorker("0");
            Path out = directory.resolve("out");
            String argfile = new String(
                            new ProcessBuilder("./moe", "--argfile")
                                    .start()
                                    .getInputStream()
                                    .readAllBytes(),
                            StandardCharsets.UTF_8)
                    .strip();
            assumeTrue(!argfile.isEmpty(), "the SDK has no backend whose driver is here");
            for (int owners : new int[] {0, 2}) {
                List<String> lines = Collections.synchronizedList(new ArrayList<>());
                new SparkJob(CHECKPOINT, "triton", "opencl", 40, 2, out, owners)
                        .run(application(own, "@" + argfile), lines::add);
                String log = String.join("\n", lines);
                assertThat(log).containsPattern("loaded: \\[\\{([01]@)?0=Tornado\\w+ on opencl:0 ");
                MoeOptions options = MoeOptions.DEFAULT.withMaxTokens(1).withBackend("cpu");
                try (MoeLayer layer = MoeLayer.load(CHECKPOINT, 0, options)) {
                    read(out)
                            .forEach((id, output) -> assertThat(Numerics.relativeL2(
                                            Numerics.widen(output), Numerics.widen(layer.forward(SparkJob.hidden(id)))))
                                    .isLessThan(2e-2));
                    assertThat(read(out)).hasSize(40);
                }
            }
        } finally {
            end();
        }
    }

    private static void assertRows(Path file, int rows) throws IOException {
        Map<Long, float[]> got = read(file);
        assertThat(got.keySet()).hasSize(rows);
        MoeOptions options = MoeOptions.DEFAULT.withMaxTokens(1).withBackend("cpu");
        try (MoeLayer layer = MoeLayer.load(CHECKPOINT, 0, options)) {
            got.forEach((id, output) ->
                    assertThat(output).isEqualTo(id % 100 == 99 ? new float[0] : layer.forward(SparkJob.hidden(id))));
        }
    }

    /** Outputs by id, none twice. */
    private static Map<Long, float[]> read(Path file) throws IOException {
        Map<Long, float[]> rows = new TreeMap<>();
        try (DataInputStream in = new DataInputStream(Files.newInputStream(file))) {
            while (true) {
                long id;
                try {
                    id = in.readLong();
                } catch (EOFException end) {
                    return rows;
                }
                float[] output = new float[in.readInt()];
                for (int i = 0; i < output.length; i++) {
                    output[i] = in.readFloat();
                }
                assertThat(rows.put(id, output)).isNull();
            }
        }
    }

    /** One executor on each worker, with its GPU. */
    private static Map<String, String> settings(SparkCluster cluster, String executorOptions) throws IOException {
        return Map.ofEntries(
                Map.entry("spark.master", cluster.master()),
                Map.entry("spark.driver.host", "127.0.0.1"),
                Map.entry("spark.driver.bindAddress", "127.0.0.1"),
                Map.entry("spark.ui.enabled", "false"),
                Map.entry("spark.log.level", "WARN"),
                // Each executor would make code that runs for some rows; those of SparkPageIT do.
                Map.entry("spark.sql.codegen.wholeStage", "false"),
                Map.entry("spark.sql.codegen.factoryMode", "NO_CODEGEN"),
                Map.entry("spark.cores.max", "" + cluster.cores()),
                Map.entry("spark.scheduler.minRegisteredResourcesRatio", "1"),
                Map.entry("spark.executor.memory", "600m"),
                Map.entry("spark.executor.cores", "2"),
                Map.entry("spark.executor.resource.gpu.amount", "1"),
                Map.entry("spark.task.resource.gpu.amount", "0.5"),
                Map.entry("spark.executor.extraJavaOptions", executorOptions),
                Map.entry("spark.executor.extraClassPath", SparkCluster.classes()));
    }
}
