package org.tornadomoe.spark;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.BufferedReader;
import java.io.DataInputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.condition.EnabledIfEnvironmentVariable;
import org.junit.jupiter.api.io.CleanupMode;
import org.junit.jupiter.api.io.TempDir;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.reference.Reference;

/**
 * A standalone cluster on loopback: a master, and workers that each declare a GPU, whose executors score rows. Every one of these is a
 * process of its own, as is the driver ({@link SparkJob}).
 */
@Timeout(value = 8, unit = TimeUnit.MINUTES)
class SparkClusterTest {
    private static final Path CHECKPOINT =
            Path.of("src/test/resources/golden/hf/mixtral").toAbsolutePath();

    @TempDir(cleanup = CleanupMode.ON_SUCCESS)
    Path directory;

    @Test
    void aWorkerThatIsKilledInTheMiddleCostsNoRow() throws Exception {
        int rows = 6000;
        Path out = directory.resolve("out");
        List<String> lines = runAndKill(4, rows, 24, out);
        // Each executor loads for the one GPU that its tasks were given; the one left is the other worker's.
        assertThat(lines).anyMatch(line -> line.matches("ENGINES .*\\{[01]=CpuExperts on cpu .*"));
        String left = lines.getFirst().equals("KILLED 0") ? "1" : "0";
        assertThat(lines).anyMatch(line -> line.startsWith("ENGINES") && line.contains("{" + left + "=CpuExperts"));
        assertRows(out, rows);
        assertRows(Path.of(out + ".profile"), rows);
    }

    /** After the six tasks that route and the six that bring the rows, among those of owners: what these were sent and have made is lost, too. */
    @Test
    void aWorkerThatIsKilledAmongOwnersCostsNoRow() throws Exception {
        int rows = 1200;
        Path out = directory.resolve("out");
        List<String> lines = runAndKill(14, rows, 6, out, "8");
        String left = lines.getFirst().equals("KILLED 0") ? "1" : "0";
        assertThat(lines).anyMatch(line -> line.matches("ENGINES \\[\\{\\d@" + left + "=CpuExperts on cpu .*"));
        // Stages that were done before are run again, as far as their output was there.
        assertThat(lines).anyMatch(line -> line.matches("TASK \\d+ \\d+\\.[1-9] Success"));
        Map<Long, float[]> got = read(out);
        assertThat(got.keySet()).hasSize(rows);
        assertThat(read(Path.of(out + ".profile"))).usingRecursiveComparison().isEqualTo(got);
        MoeOptions options = MoeOptions.DEFAULT.withMaxTokens(1).withBackend("cpu");
        try (MoeLayer layer = MoeLayer.load(CHECKPOINT, 0, options)) {
            got.forEach((id, output) -> {
                if (id % 100 == 99) {
                    assertThat(output).isEmpty();
                } else {
                    float[] whole = layer.forward(SparkJob.hidden(id));
                    assertThat(Reference.relativeL2(Reference.widen(output), Reference.widen(whole)))
                            .isLessThan(3e-7);
                }
            });
        }
    }

    /** Two workers, of which the one that ran the last of so many tasks is killed after it: which, then the driver's lines. */
    private List<String> runAndKill(int tasks, int rows, int partitions, Path out, String... owners) throws Exception {
        List<String> lines = new ArrayList<>();
        int killed = -1;
        int before = 0;
        try (SparkCluster cluster = new SparkCluster(directory)) {
            cluster.startMaster();
            List<Process> workers = List.of(cluster.startWorker("0"), cluster.startWorker("1"));
            String options = "--add-modules jdk.incubator.vector";
            Process driver = driver(cluster, "cpu", "any", rows, partitions, out, options, owners);
            BufferedReader log =
                    new BufferedReader(new InputStreamReader(driver.getInputStream(), StandardCharsets.UTF_8));
            for (String line = log.readLine(); line != null; line = log.readLine()) {
                lines.add(line);
                if (killed < 0 && line.startsWith("TASK") && line.endsWith("Success") && ++before == tasks) {
                    killed = cluster.workerOf(line.split(" ", -1)[1]);
                    SparkCluster.kill(workers.get(killed));
                }
            }
            assertThat(driver.waitFor()).as(String.join("\n", lines)).isZero();
        }
        assertThat(killed).isNotNegative();
        assertThat(lines).anyMatch(line -> line.startsWith("LOST"));
        lines.addFirst("KILLED " + killed);
        return lines;
    }

    @Test
    @EnabledIfEnvironmentVariable(
            named = "TORNADOVM_HOME",
            matches = ".+",
            disabledReason = "no TornadoVM SDK (TORNADOVM_HOME is not set)")
    void executorsRunOnTornadoVm() throws Exception {
        try (SparkCluster cluster = new SparkCluster(directory)) {
            cluster.startMaster();
            cluster.startWorker("0");
            Path out = directory.resolve("out");
            String argfile = new String(
                            new ProcessBuilder("./moe", "--argfile")
                                    .start()
                                    .getInputStream()
                                    .readAllBytes(),
                            StandardCharsets.UTF_8)
                    .strip();
            assumeTrue(!argfile.isEmpty(), "the SDK has no backend whose driver is here");
            for (String[] owners : new String[][] {{}, {"2"}}) {
                Process driver = driver(cluster, "triton", "opencl", 40, 2, out, "@" + argfile, owners);
                String log = new String(driver.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
                assertThat(driver.waitFor()).as(log).isZero();
                assertThat(log).containsPattern("ENGINES \\[\\{([01]@)?0=Tornado\\w+ on opencl:0 ");
                MoeOptions options = MoeOptions.DEFAULT.withMaxTokens(1).withBackend("cpu");
                try (MoeLayer layer = MoeLayer.load(CHECKPOINT, 0, options)) {
                    read(out)
                            .forEach((id, output) -> assertThat(Reference.relativeL2(
                                            Reference.widen(output),
                                            Reference.widen(layer.forward(SparkJob.hidden(id)))))
                                    .isLessThan(2e-2));
                    assertThat(read(out)).hasSize(40);
                }
            }
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

    private Process driver(
            SparkCluster cluster,
            String backend,
            String device,
            int rows,
            int partitions,
            Path out,
            String executorOptions,
            String... owners)
            throws IOException {
        List<String> arguments = new ArrayList<>(List.of(
                "org.tornadomoe.spark.SparkJob",
                CHECKPOINT.toString(),
                backend,
                device,
                "" + rows,
                "" + partitions,
                out.toString()));
        Collections.addAll(arguments, owners);
        return cluster.start(
                "driver",
                List.of(
                        "-Dspark.master=" + cluster.master(),
                        "-Dspark.driver.host=127.0.0.1",
                        "-Dspark.driver.bindAddress=127.0.0.1",
                        "-Dspark.ui.enabled=false",
                        "-Dspark.executor.memory=600m",
                        "-Dspark.executor.cores=2",
                        "-Dspark.executor.resource.gpu.amount=1",
                        "-Dspark.task.resource.gpu.amount=0.5",
                        "-Dspark.executor.extraJavaOptions=" + executorOptions,
                        "-Dspark.executor.extraClassPath=" + SparkCluster.classes()),
                arguments.toArray(String[]::new));
    }
}
