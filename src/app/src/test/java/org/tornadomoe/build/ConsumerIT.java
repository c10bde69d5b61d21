package org.tornadomoe.build;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.jar.JarFile;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.condition.EnabledIfEnvironmentVariable;
import org.junit.jupiter.api.io.TempDir;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;

/**
 * A project that depends on the library as it was installed, into a repository of its own: {@code docs/java.md}, as it
 * stands there, files and commands. Maven runs offline, on what this build has resolved.
 */
class ConsumerIT {
    private static final Path CHECKPOINT =
            Path.of("src/test/resources/golden/hf/mixtral").toAbsolutePath();
    private static final String JAVA = InstalledLibrary.JAVA;
    private static final String VERSION = InstalledLibrary.VERSION; // as on the page

    @TempDir
    static Path project;

    @TempDir
    static Path repository;

    private static InstalledLibrary library;
    private static String page = "";

    @BeforeAll
    static void build() throws Exception {
        library = new InstalledLibrary(repository);
        page = Files.readString(Path.of("docs/java.md")).replaceAll("\\\\\n\\s+", ""); // lines go on after a backslash
        Files.writeString(project.resolve("pom.xml"), block("xml", "<project"));
        Path source = project.resolve("src/main/java/example/App.java");
        Files.createDirectories(source.getParent());
        Files.writeString(source, block("java", "package example"));
        run(command("mvn -q compile"));
    }

    /** The page's block of that language that begins so. */
    private static String block(String language, String start) {
        String fence = "```" + language + "\n" + start;
        int from = page.indexOf(fence);
        assertThat(from).as(fence).isNotNegative();
        from += 4 + language.length();
        return page.substring(from, page.indexOf("```\n", from));
    }

    /** The page's command that begins so. */
    private static String command(String start) {
        return page.lines()
                .map(String::strip)
                .filter(line -> line.startsWith(start))
                .findFirst()
                .orElseThrow(() -> new AssertionError("docs/java.md has no command " + start));
    }

    private static String run(String command) throws IOException, InterruptedException {
        return library.run(project, command);
    }

    private static String java(String command, String backend) throws IOException, InterruptedException {
        return run(command.replace("java ", JAVA + " ").replace("CHECKPOINT", CHECKPOINT + " " + backend));
    }

    /** What the program prints after the device, here and now. */
    private static String values(String backend) {
        try (MoeLayer layer =
                MoeLayer.load(CHECKPOINT, 0, MoeOptions.DEFAULT.withMaxTokens(4).withBackend(backend))) {
            float[] hidden = new float[4 * layer.config().hiddenDim()];
            for (int i = 0; i < hidden.length; i++) {
                hidden[i] = (float) Math.sin(i);
            }
            float[] output = layer.forward(hidden);
            return ": " + output[0] + " " + output[1];
        }
    }

    @Test
    void thePlainClassPathIsEnoughForTheCpu() throws Exception {
        assertThat(java(command("java --add-modules jdk.incubator.vector -cp"), ""))
                .contains("CpuExperts on cpu (", values("cpu"));
    }

    /** Neither the flight recorder's module, which a listener would use, nor the Vector API's. */
    @Test
    void theJdksBaseModuleIsEnough() throws Exception {
        assertThat(java(
                        command("java --add-modules jdk.incubator.vector -cp")
                                .replace("--add-modules jdk.incubator.vector", "--limit-modules java.base"),
                        ""))
                .contains("CpuExperts on cpu (", values("cpu"));
    }

    @Test
    void itBringsNoMoreThanItNeeds() throws IOException {
        try (Stream<Path> jars = Files.list(project.resolve("target/dependency"))) {
            assertThat(jars.map(jar -> jar.getFileName().toString().replaceFirst("-[0-9].*", "")))
                    .containsExactlyInAnyOrder("tornado-moe", "jspecify", "jackson-jr-objects", "jackson-core");
        }
    }

    @Test
    void theInterpretersJarRunsTheTaskGraphs() throws Exception {
        Path jar = installed("tornado-moe-interpreter-" + VERSION + ".jar");
        String command = command("java --add-modules jdk.incubator.vector -cp").replace("-cp \"", "-cp \"" + jar + ":");
        assertThat(java(command, "triton")).contains("on interpreter:0", values("triton"));
    }

    @Test
    @EnabledIfEnvironmentVariable(
            named = "TORNADOVM_HOME",
            matches = ".+",
            disabledReason = "no TornadoVM SDK (TORNADOVM_HOME is not set)")
    void underTornadoVmsArgumentFileItRunsOnADevice() throws Exception {
        String command = command("LD_PRELOAD=$JAVA_HOME/lib/libjsig.so java @$TORNADOVM_HOME/tornado-argfile")
                .replace("$TORNADOVM_HOME/tornado-argfile", System.getProperty("tornado.argfile"));
        assertThat(java(command, "triton"))
                .containsPattern("Tornado\\w+Experts on (cuda|ptx|opencl|spirv|metal):0.*: -?0\\.\\d+ -?0\\.\\d+");
    }

    /** A program's own Log4j, such as Spark's or Spring Boot's, would be hidden by the SDK's older one. */
    @Test
    @EnabledIfEnvironmentVariable(
            named = "TORNADOVM_HOME",
            matches = ".+",
            disabledReason = "no TornadoVM SDK (TORNADOVM_HOME is not set)")
    void theLaunchersArgumentFileLeavesOutWhatWouldHideTheProgramsOwn() throws Exception {
        Path argfile =
                Path.of(run(Path.of("moe").toAbsolutePath() + " --argfile 2>&1").strip());
        String modules = Files.readAllLines(argfile).stream()
                .filter(line -> line.startsWith("--module-path"))
                .map(line -> line.substring(line.indexOf('"') + 1, line.lastIndexOf('"')))
                .findFirst()
                .orElseThrow();
        try (Stream<Path> jars = Files.list(Path.of(modules))) {
            assertThat(jars.map(jar -> jar.getFileName().toString()))
                    .anyMatch(jar -> jar.startsWith("tornado-api-"))
                    .noneMatch(jar -> jar.matches("(log4j|jmh-core)-.*"));
        }
    }

    @Test
    void onTheModulePathItHasAName() throws Exception {
        Files.writeString(project.resolve("src/module-info.java"), "module example { requires org.tornadomoe; }");
        run(JAVA + "c -d target/classes -p target/dependency src/module-info.java src/main/java/example/App.java");
        try {
            assertThat(java(command("java --add-modules ALL-MODULE-PATH"), ""))
                    .contains("CpuExperts on cpu (", values("cpu"));
        } finally {
            Files.delete(project.resolve("target/classes/module-info.class"));
        }
    }

    @Test
    void sourcesAndJavadocAreInstalledWithIt() throws IOException {
        assertThat(entries("-sources.jar")).contains("org/tornadomoe/MoeLayer.java");
        assertThat(entries("-javadoc.jar"))
                .contains("org/tornadomoe/MoeLayer.html")
                .noneMatch(name -> name.startsWith("uk/"));
        assertThat(entries("tornado-moe-" + VERSION + ".jar"))
                .contains("org/tornadomoe/MoeLayer.class")
                .noneMatch(name -> name.startsWith("uk/"));
    }

    private static List<String> entries(String end) throws IOException {
        try (JarFile jar = new JarFile(installed(end).toFile())) {
            return jar.stream().map(entry -> entry.getName()).toList();
        }
    }

    private static Path installed(String end) throws IOException {
        try (Stream<Path> files = Files.walk(repository.resolve("org/tornadomoe"))) {
            return files.filter(file -> file.toString().endsWith(end))
                    .findFirst()
                    .orElseThrow(() -> new AssertionError("not installed: *" + end));
        }
    }
}
