package org.tornadomoe.spark;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.File;
import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.apache.spark.launcher.JavaModuleOptions;

/** A standalone cluster on loopback, every part a process of its own, with logs in a directory. */
final class SparkCluster implements AutoCloseable {
    private static final int CORES = 2; // of a worker

    private final Path directory;
    private final List<Process> started = new ArrayList<>();
    private final Map<String, Process> workers = new HashMap<>();
    private String master = "";

    SparkCluster(Path directory) {
        this.directory = directory;
    }

    String master() {
        return master;
    }

    /** Of all workers. */
    int cores() {
        return CORES * workers.size();
    }

    /** A home such as Spark's own, whose jars are those of the test. */
    static Path home() throws IOException {
        Path home = Path.of("target/spark-home").toAbsolutePath();
        Path jars = Files.createDirectories(home.resolve("jars"));
        for (String entry : classPath()) {
            Path jar = Path.of(entry);
            Path link = jars.resolve(jar.getFileName());
            if (!isLibrary(entry) && !(Files.isSymbolicLink(link) && Files.exists(link))) {
                Files.deleteIfExists(link);
                Files.createSymbolicLink(link, jar);
            }
        }
        return home;
    }

    static List<String> classPath() {
        String path = System.getProperty("surefire.test.class.path", System.getProperty("java.class.path", ""));
        return List.of(path.split(File.pathSeparator, -1));
    }

    /** The library and these tests, and the jars that the library brings. */
    private static boolean isLibrary(String entry) {
        String path = entry.replace(File.separatorChar, '/');
        return !path.endsWith(".jar")
                || path.contains("/tornado-moe")
                || path.contains("/tools/jackson/")
                || path.contains("/org/jspecify/");
    }

    static String classes() {
        return classPath().stream()
                .filter(entry -> isLibrary(entry) && Files.exists(Path.of(entry)))
                .map(entry -> Path.of(entry).toAbsolutePath().toString()) // executors run in directories of their own
                .collect(Collectors.joining(File.pathSeparator));
    }

    Process start(String name, List<String> options, String... mainAndArguments) throws IOException {
        Path home = home();
        List<String> command = new ArrayList<>();
        command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
        Collections.addAll(command, JavaModuleOptions.defaultModuleOptionArray());
        command.addAll(List.of("-Xmx512m", "-cp"));
        command.add(classes() + File.pathSeparator + home + "/jars/*");
        command.addAll(options);
        Collections.addAll(command, mainAndArguments);
        ProcessBuilder builder = new ProcessBuilder(command);
        setEnvironment(builder.environment());
        builder.redirectError(directory.resolve(name + ".err").toFile());
        builder.redirectOutput(directory.resolve(name + ".out").toFile());
        Process process = builder.start();
        started.add(process);
        return process;
    }

    /**
     * Spark's home, this JVM's Java, and the directory's scripts before others. All JVMs, executors' and drivers' too,
     * are done before C2's code or a verified class would pay.
     */
    void setEnvironment(Map<String, String> environment) throws IOException {
        environment.put("SPARK_HOME", home().toString());
        environment.put("SPARK_SCALA_VERSION", "2.13");
        environment.put("SPARK_LOCAL_IP", "127.0.0.1");
        environment.put("JAVA_HOME", System.getProperty("java.home"));
        environment.put(
                "JDK_JAVA_OPTIONS",
                "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:MetaspaceSize=256m"
                        + " -XX:+UnlockDiagnosticVMOptions -XX:-BytecodeVerificationRemote");
        environment.merge("PATH", directory.toString(), (path, own) -> own + File.pathSeparator + path);
    }

    void startMaster() throws IOException, InterruptedException {
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

    String read(String name) {
        try {
            return Files.readString(directory.resolve(name));
        } catch (IOException none) {
            return none.toString();
        }
    }

    /** A worker that has the GPU of that address. */
    Process startWorker(String gpu) throws IOException {
        Path script = script("gpu" + gpu + ".sh", "echo '{\"name\": \"gpu\", \"addresses\": [\"" + gpu + "\"]}'");
        return startWorker(
                gpu,
                List.of(
                        "-Dspark.worker.resource.gpu.amount=1",
                        "-Dspark.worker.resource.gpu.discoveryScript=" + script));
    }

    /** An executable script in the directory. */
    Path script(String name, String lines) throws IOException {
        Path script = directory.resolve(name);
        Files.writeString(script, "#!/bin/bash\n" + lines + "\n");
        assertThat(script.toFile().setExecutable(true)).isTrue();
        return script;
    }

    Process startWorker(String name, List<String> resources) throws IOException {
        Process worker = start(
                "worker" + name,
                resources,
                "org.apache.spark.deploy.worker.Worker",
                "--host",
                "127.0.0.1",
                "--webui-port",
                "0",
                "--cores",
                "" + CORES,
                "--memory",
                "1g",
                "--work-dir",
                directory.resolve("work" + name).toString(),
                master);
        workers.put(name, worker); // in place of one that is gone
        return worker;
    }

    /** What a worker with a resource says of it in its log, once it is registered. */
    String registration(String name) throws InterruptedException {
        String log = "worker" + name + ".err";
        while (!read(log).contains("Successfully registered with master")) {
            Thread.sleep(50);
        }
        Matcher resource = Pattern.compile("\\w+ -> \\[name: .*\\]").matcher(read(log));
        assertThat(resource.find()).isTrue();
        return resource.group();
    }

    /** The worker that an application's executor runs on: it has a directory there. */
    int workerOf(String application, String executor) {
        for (int worker = 0; worker < 2; worker++) {
            if (Files.exists(directory.resolve("work" + worker, application, executor))) {
                return worker;
            }
        }
        throw new AssertionError("no worker has executor " + executor);
    }

    static void kill(Process process) {
        List<ProcessHandle> children = process.descendants().toList();
        process.destroyForcibly();
        children.forEach(ProcessHandle::destroyForcibly);
    }

    @Override
    public void close() {
        for (Process process : started.reversed()) {
            kill(process);
            process.onExit().join();
        }
    }
}
