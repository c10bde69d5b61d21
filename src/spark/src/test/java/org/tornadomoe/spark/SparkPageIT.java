package org.tornadomoe.spark;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;
import java.util.jar.JarEntry;
import java.util.jar.JarOutputStream;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import javax.tools.ToolProvider;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.CleanupMode;
import org.junit.jupiter.api.io.TempDir;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.reference.Numerics;

/**
 * {@code docs/spark.md}: its job and the variants of it, compiled and submitted by its command to a cluster that has
 * its properties, with the library's jars as they are packaged; one driver runs them one after the other. Other models,
 * no device; {@code spark-submit} and {@code nvidia-smi} are scripts of this test's.
 */
@Timeout(value = 8, unit = TimeUnit.MINUTES)
class SparkPageIT {
    private static final Path MODELS = Path.of("src/test/resources/golden/hf").toAbsolutePath();
    private static final int ROWS = 50;

    @TempDir(cleanup = CleanupMode.ON_SUCCESS)
    static Path directory;

    private static SparkCluster cluster;
    private static String page = "";
    private static List<String> blocks = List.of();

    @BeforeAll
    static void start() throws Exception {
        page = Files.readString(Path.of("docs/spark.md"));
        blocks = Pattern.compile("```java\n(.*?)```", Pattern.DOTALL)
                .matcher(page)
                .results()
                .map(found -> found.group(1))
                .toList();
        cluster = new SparkCluster(directory);
        cluster.script("nvidia-smi", "seq 0 7");
        // As Spark's script does: an empty argument, a line's end, then the command's, each ended by a zero.
        cluster.script("spark-submit", """
            launch=("$JAVA_HOME/bin/java" -cp "$SPARK_HOME/jars/*" org.apache.spark.launcher.Main)
            mapfile -d '' command < <("${launch[@]}" org.apache.spark.deploy.SparkSubmit "$@")
            command[1]=${command[1]#$'\\n'}
            exec "${command[@]:1}"
            """);
        cluster.startMaster();
        cluster.startWorker("0", properties("spark.worker."));
        jars();
        StringBuilder rows = new StringBuilder();
        for (long id = 0; id < ROWS; id++) {
            rows.append("{\"id\": ")
                    .append(id)
                    .append(", \"hidden\": ")
                    .append(id % 10 == 9 ? "null" : Arrays.toString(SparkJob.hidden(id)))
                    .append("}\n");
        }
        Files.writeString(directory.resolve("rows.json"), rows);
        submit();
    }

    @AfterAll
    static void stop() {
        cluster.close();
    }

    /** The page's properties that begin so, as options of a JVM. */
    private static List<String> properties(String start) {
        return page.lines()
                .filter(line -> line.startsWith("    " + start))
                .map(line -> line.strip().split(" +", 2))
                .map(words -> "-D" + words[0] + "="
                        + words[1].replace("/opt/tornado-moe/", Path.of("").toAbsolutePath() + "/"))
                .toList();
    }

    /** What is to be in /opt/tornado-moe. */
    private static void jars() throws IOException {
        Path lib = Files.createDirectory(directory.resolve("lib"));
        List<Path> jars = new ArrayList<>(
                List.of(Path.of("src/core/target/tornado-moe.jar"), Path.of("src/spark/target/tornado-moe-spark.jar")));
        SparkCluster.classPath().stream()
                .filter(jar -> jar.matches(".*/(jackson-jr-objects|jackson-core|jspecify)-[0-9.]+\\.jar")
                        && !jar.contains("/com/fasterxml/"))
                .map(Path::of)
                .forEach(jars::add);
        assertThat(jars).hasSize(5);
        for (Path jar : jars) {
            Files.copy(jar, lib.resolve(jar.getFileName()));
        }
    }

    /** The job, with a block's statements in place of its own, if given; compiled, of a package of that name. */
    private static void job(Path classes, String name, String block, String model) throws IOException {
        String source = blocks.getFirst();
        if (!block.isEmpty()) {
            int from = source.indexOf("        Dataset<Row> scored");
            source = source.substring(0, from) + block + source.substring(source.indexOf("        scored.write"));
            source = source.replace("import java.time", "import org.apache.spark.resource.*;\nimport java.time");
        }
        source = Pattern.compile("\"/models/[^\"]+\", \\d+")
                .matcher(source)
                .replaceAll(Matcher.quoteReplacement("\"" + MODELS.resolve(model) + "\", 0"));
        source = source.replace(".withDevice(\"cuda\")", ".withBackend(\"cpu\")");
        compile(classes, source.replace("package example;", "package " + name + ";"));
    }

    private static void compile(Path classes, String source) throws IOException {
        Path file = Files.writeString(directory.resolve("Job.java"), source);
        int status = ToolProvider.getSystemJavaCompiler()
                .run(
                        null,
                        null,
                        null,
                        "-proc:none",
                        "-cp",
                        System.getProperty("java.class.path") + ":" + String.join(":", SparkCluster.classPath()) + ":"
                                + classes,
                        "-d",
                        classes.toString(),
                        file.toString());
        assertThat(status).as(source).isZero();
    }

    /** All jobs, and a class {@code example.Job} that runs them, each with an output of its name. */
    private static Path jar() throws IOException {
        assertThat(blocks).hasSize(3);
        Path classes = Files.createDirectory(directory.resolve("classes"));
        job(classes, "plain", "", "qwen3_moe");
        job(classes, "profile", blocks.get(1), "qwen3_moe");
        job(classes, "plan", blocks.get(2), "deepseek_v3");
        List<String> names = List.of("plain", "profile", "plan");
        StringBuilder all =
                new StringBuilder("package example; public class Job { public static void main(String[] args) {");
        for (String name : names) {
            all.append(name)
                    .append(".Job.main(new String[] {args[0], args[1] + \"/")
                    .append(name)
                    .append("\"});");
        }
        compile(classes, all + "}}");
        Path jar = directory.resolve("job.jar");
        try (OutputStream out = Files.newOutputStream(jar);
                JarOutputStream jarred = new JarOutputStream(out)) {
            for (String name :
                    Stream.concat(names.stream(), Stream.of("example")).toList()) {
                jarred.putNextEntry(new JarEntry(name + "/Job.class"));
                jarred.write(Files.readAllBytes(classes.resolve(name).resolve("Job.class")));
            }
        }
        return jar;
    }

    /** Submits the jobs by the page's command. */
    private static void submit() throws Exception {
        int from = page.indexOf("    spark-submit");
        String command = page.substring(from, page.indexOf("\n\n", from))
                .replace("spark://HOST:7077", cluster.master())
                .replace("/opt/tornado-moe/*", directory.resolve("lib") + "/*")
                .replace(
                        "job.jar IN OUT",
                        jar() + " " + directory.resolve("rows.json") + " " + directory.resolve("out"));
        StringBuilder conf = new StringBuilder(" --conf spark.driver.host=127.0.0.1 ");
        for (String property : Stream.concat(properties("spark.executor.").stream(), properties("spark.task.").stream())
                .toList()) {
            conf.append("--conf ").append(property.substring(2)).append(' ');
        }
        command = command.replace(" --class", conf + " --class");
        Path log = directory.resolve("submit.log");
        ProcessBuilder shell = new ProcessBuilder("bash", "-c", command)
                .redirectErrorStream(true)
                .redirectOutput(log.toFile());
        cluster.setEnvironment(shell.environment());
        Process process = shell.start();
        try {
            assertThat(process.waitFor())
                    .as("%s%n%s", command, Files.readString(log))
                    .isZero();
        } finally {
            process.descendants().forEach(ProcessHandle::destroyForcibly);
            process.destroyForcibly();
        }
    }

    /** A job's outputs, by id. */
    private static Map<Long, double[]> outputs(String name) throws IOException {
        Map<Long, double[]> outputs = new TreeMap<>();
        Pattern line = Pattern.compile("\\{\"id\":(\\d+)(,\"hidden\":\\[[^]]*\\])?(?:,\"output\":\\[([^]]*)\\])?\\}");
        try (Stream<Path> files = Files.list(directory.resolve("out").resolve(name))) {
            for (Path file :
                    files.filter(path -> path.toString().endsWith(".json")).toList()) {
                for (String row : Files.readAllLines(file)) {
                    Matcher parts = line.matcher(row);
                    assertThat(parts.matches()).as(row).isTrue();
                    double[] output = parts.group(3) == null
                            ? new double[0]
                            : Arrays.stream(parts.group(3).split(",", -1))
                                    .mapToDouble(Float::parseFloat)
                                    .toArray();
                    assertThat(outputs.put(Long.parseLong(parts.group(1)), output))
                            .isNull();
                }
            }
        }
        assertThat(outputs).hasSize(ROWS);
        return outputs;
    }

    private static void assertOutputs(Map<Long, double[]> outputs, String model, double within) {
        try (MoeLayer layer = MoeLayer.load(
                MODELS.resolve(model), 0, MoeOptions.DEFAULT.withMaxTokens(1).withBackend("cpu"))) {
            outputs.forEach((id, output) -> {
                assertThat(output).hasSize(id % 10 == 9 ? 0 : SparkJob.H);
                if (output.length > 0) {
                    double[] whole = Numerics.widen(layer.forward(SparkJob.hidden(id)));
                    assertThat(Numerics.relativeL2(output, whole)).isLessThanOrEqualTo(within);
                }
            });
        }
    }

    @Test
    void theJob() throws Exception {
        assertOutputs(outputs("plain"), "qwen3_moe", 0);
    }

    @Test
    void withAProfile() throws Exception {
        assertOutputs(outputs("profile"), "qwen3_moe", 0);
    }

    @Test
    void theExpertParallelPlan() throws Exception {
        assertOutputs(outputs("plan"), "deepseek_v3", 3e-7);
    }
}
