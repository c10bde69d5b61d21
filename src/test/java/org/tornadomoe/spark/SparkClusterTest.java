package org.tornadomoe.spark;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.BufferedReader;
import java.io.DataInputStream;
import java.io.EOFException;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import org.apache.spark.launcher.JavaModuleOptions;
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

    private final List<Process> started = new ArrayList<>();
    private String master = "";

    @Test
    void aWorkerThatIsKilledInTheMiddleCostsNoRow() throws Exception {
        int rows = 6000;
        try {
            Path out = directory.resolve("out");
            List<String> lines = runAndKill(4, rows, 24, out);
            // Each executor loads for the one GPU that its tasks were given; the one left is the other worker's.
            assertThat(lines).anyMatch(line -> line.matches("ENGINES .*\\{[01]=CpuExperts on cpu .*"));
            String left = lines.getFirst().equals("KILLED 0") ? "1" : "0";
            assertThat(lines).anyMatch(line -> line.startsWith("ENGINES") && line.contains("{" + left + "=CpuExperts"));
            assertRows(out, rows);
            assertRows(Path.of(out + ".profile"), rows);
        } finally {
            stop();
        }
    }

    /** After the six tasks that route and the six that bring the rows, among those of owners: what these were sent and have made is lost, too. */
    @Test
    void aWorkerThatIsKilledAmongOwnersCostsNoRow() throws Exception {
        int rows = 1200;
        try {
            Path out = directory.resolve("out");
            List<String> lines = runAndKill(14, rows, 6, out, "8");
            String left = lines.getFirst().equals("KILLED 0") ? "1" : "0";
            assertThat(lines).anyMatch(line -> line.matches("ENGINES \\[\\{\\d@" + left + "=CpuExperts on cpu .*"));
            // Stages that were done before are run again, as far as their output was there.
            assertThat(lines).anyMatch(line -> line.matches("TASK \\d+ \\d+\\.[1-9] Success"));
            Map<Long, float[]> got = read(out);
            assertThat(got.keySet()).hasSize(rows);
            assertThat(read(Path.of(out + ".profile")))
                    .usingRecursiveComparison()
                    .isEqualTo(got);
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
        } finally {
            stop();
        }
    }

    /** Two workers, of which the one that ran the last of so many tasks is killed after it: which, then the driver's lines. */
    private List<String> runAndKill(int tasks, int rows, int partitions, Path out, String... owners) throws Exception {
        startMaster();
        List<Process> workers = List.of(startWorker("0"), startWorker("1"));
        Process driver = driver("cpu", "any", rows, partitions, out, "--add-modules jdk.incubator.vector", owners);
        List<String> lines = new ArrayList<>();
        int killed = -1;
        int before = 0;
        try (BufferedReader log =
                new BufferedReader(new InputStreamReader(driver.getInputStream(), StandardCharsets.UTF_8))) {
            for (String line = log.readLine(); line != null; line = log.readLine()) {
                lines.add(line);
                if (killed < 0 && line.startsWith("TASK") && line.endsWith("Success") && ++before == tasks) {
                    killed = workerOf(line.split(" ", -1)[1]);
                    kill(workers.get(killed));
                }
            }
        }
        assertThat(driver.waitFor()).as(String.join("\n", lines)).isZero();
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
        try {
            startMaster();
            startWorker("0");
            Path out = directory.resolve("out");
            String argfile = new String(
                            new ProcessBuilder("./moe", "--argfile")
                                    .start()
                                    .getInputStream()
                                    .readAllBytes(),
                            StandardCharsets.UTF_8)
                    .strip();
            assumeTrue(!argfile.isEmpty(), "the SDK has no backend whose driver is here");
            Process driver = driver("triton", "opencl", 40, 2, out, "@" + argfile);
            String log = new String(driver.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
            assertThat(driver.waitFor()).as(log).isZero();
            assertThat(log).containsPattern("ENGINES \\[\\{0=Tornado\\w+ on opencl:0 ");
            MoeOptions options = MoeOptions.DEFAULT.withMaxTokens(1).withBackend("cpu");
            try (MoeLayer layer = MoeLayer.load(CHECKPOINT, 0, options)) {
                read(out)
                        .forEach((id, output) -> assertThat(Reference.relativeL2(
                                        Reference.widen(output), Reference.widen(layer.forward(SparkJob.hidden(id)))))
                                .isLessThan(2e-2));
                assertThat(read(out)).hasSize(40);
            }
        } finally {
            stop();
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

    // ---- the cluster

    /** A home such as Spark's own, whose jars are those of the test. */
    private static Path home() throws IOException {
        Path home = Path.of("target/spark-home").toAbsolutePath();
        Path jars = Files.createDirectories(home.resolve("jars"));
        for (String entry : classPath()) {
            Path jar = Path.of(entry);
            Path link = jars.resolve(jar.getFileName());
            if (entry.endsWith(".jar") && !(Files.isSymbolicLink(link) && Files.exists(link))) {
                Files.deleteIfExists(link);
                Files.createSymbolicLink(link, jar);
            }
        }
        return home;
    }

    private static List<String> classPath() {
        String path = System.getProperty("surefire.test.class.path", System.getProperty("java.class.path", ""));
        return List.of(path.split(File.pathSeparator, -1));
    }

    /** What isn't in jars: the library and these tests. */
    private static String classes() {
        return classPath().stream()
                .filter(entry -> Files.isDirectory(Path.of(entry)))
                .collect(Collectors.joining(File.pathSeparator));
    }

    private Process start(String name, List<String> options, String... mainAndArguments) throws IOException {
        Path home = home();
        List<String> command = new ArrayList<>();
        command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
        Collections.addAll(command, JavaModuleOptions.defaultModuleOptionArray());
        command.addAll(List.of("-Xmx512m", "-XX:TieredStopAtLevel=1", "-cp"));
        command.add(classes() + File.pathSeparator + home + "/jars/*");
        command.addAll(options);
        Collections.addAll(command, mainAndArguments);
        ProcessBuilder builder = new ProcessBuilder(command);
        builder.environment().put("SPARK_HOME", home.toString());
        builder.environment().put("SPARK_SCALA_VERSION", "2.13");
        builder.environment().put("SPARK_LOCAL_IP", "127.0.0.1");
        builder.environment().put("JAVA_HOME", System.getProperty("java.home"));
        builder.redirectError(directory.resolve(name + ".err").toFile());
        if (!name.equals("driver")) {
            builder.redirectOutput(directory.resolve(name + ".out").toFile());
        }
        Process process = builder.start();
        started.add(process);
        return process;
    }

    private void startMaster() throws IOException, InterruptedException {
        int port;
        try (ServerSocket free = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            port = free.getLocalPort();
        }
        master = "spark://127.0.0.1:" + port;
        Process process = start(
                "master",
                List.of(),
                "org.apache.spark.deploy.master.Master",
                "--host",
                "127.0.0.1",
                "--port",
                "" + port,
                "--webui-port",
                "0");
        while (true) {
            try (Socket _ = new Socket(InetAddress.getLoopbackAddress(), port)) {
                return;
            } catch (IOException notYet) {
                assertThat(process.isAlive())
                        .as(() -> "master: " + read("master.err"))
                        .isTrue();
                Thread.sleep(100);
            }
        }
    }

    private String read(String name) {
        try {
            return Files.readString(directory.resolve(name));
        } catch (IOException none) {
            return none.toString();
        }
    }

    private Process startWorker(String gpu) throws IOException {
        Path script = directory.resolve("gpu" + gpu + ".sh");
        Files.writeString(script, "#!/bin/sh\necho '{\"name\": \"gpu\", \"addresses\": [\"" + gpu + "\"]}'\n");
        assertThat(script.toFile().setExecutable(true)).isTrue();
        return start(
                "worker" + gpu,
                List.of(
                        "-Dspark.worker.resource.gpu.amount=1",
                        "-Dspark.worker.resource.gpu.discoveryScript=" + script),
                "org.apache.spark.deploy.worker.Worker",
                "--host",
                "127.0.0.1",
                "--webui-port",
                "0",
                "--cores",
                "2",
                "--memory",
                "1g",
                "--work-dir",
                directory.resolve("work" + gpu).toString(),
                master);
    }

    private Process driver(
            String backend, String device, int rows, int partitions, Path out, String executorOptions, String... owners)
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
        return start(
                "driver",
                List.of(
                        "-Dspark.master=" + master,
                        "-Dspark.driver.host=127.0.0.1",
                        "-Dspark.driver.bindAddress=127.0.0.1",
                        "-Dspark.ui.enabled=false",
                        "-Dspark.executor.memory=600m",
                        "-Dspark.executor.cores=2",
                        "-Dspark.executor.resource.gpu.amount=1",
                        "-Dspark.task.resource.gpu.amount=0.5",
                        "-Dspark.executor.extraJavaOptions=" + executorOptions,
                        "-Dspark.executor.extraClassPath=" + classes()),
                arguments.toArray(String[]::new));
    }

    /** The worker that an executor runs on: it has a directory there. */
    private int workerOf(String executor) throws IOException {
        for (int worker = 0; worker < 2; worker++) {
            try (var applications = Files.list(directory.resolve("work" + worker))) {
                if (applications.anyMatch(application -> Files.exists(application.resolve(executor)))) {
                    return worker;
                }
            }
        }
        throw new AssertionError("no worker has executor " + executor);
    }

    private static void kill(Process process) {
        List<ProcessHandle> children = process.descendants().toList();
        process.destroyForcibly();
        children.forEach(ProcessHandle::destroyForcibly);
    }

    private void stop() throws InterruptedException {
        for (Process process : started.reversed()) {
            kill(process);
            process.waitFor();
        }
    }
}
