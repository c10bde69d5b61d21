package org.tornadomoe.build;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;

/**
 * What this build has packaged, in a repository of its own, and a shell for projects that depend on it. Maven runs
 * offline, on what the build has resolved.
 */
final class InstalledLibrary {
    static final String VERSION = "0.1.0";

    static final String JAVA =
            Path.of(System.getProperty("java.home"), "bin", "java").toString();

    private final Path repository;

    InstalledLibrary(Path repository) throws IOException {
        this.repository = repository;
        install("tornado-moe-parent", Path.of("."));
        install("tornado-moe-bom", Path.of("src/bom"));
        install("tornado-moe-interpreter", Path.of("src/interpreter"), ".jar");
        install("tornado-moe", Path.of("src/core"), ".jar", "-sources.jar", "-javadoc.jar");
    }

    /** As {@code ./mvnw install} does: a module's pom, and what was packaged of it. */
    private void install(String artifact, Path module, String... ends) throws IOException {
        Path home = Files.createDirectories(
                repository.resolve("org/tornadomoe").resolve(artifact).resolve(VERSION));
        Files.copy(module.resolve("pom.xml"), home.resolve(artifact + "-" + VERSION + ".pom"));
        for (String end : ends) {
            Files.copy(module.resolve("target").resolve(artifact + end), home.resolve(artifact + "-" + VERSION + end));
        }
    }

    /** What a command prints that ends well; {@code mvn} is this build's Maven, offline, with that repository. */
    String run(Path project, String command) throws IOException, InterruptedException {
        return run(project, "-o", command);
    }

    /** @param mode of Maven */
    String run(Path project, String mode, String command) throws IOException, InterruptedException {
        String maven = System.getProperty("consumer.maven") + "/bin/mvn -B " + mode + " -Dmaven.repo.local="
                + repository + " -Dmaven.repo.local.tail=" + System.getProperty("consumer.repository.tail") + " ";
        ProcessBuilder shell = new ProcessBuilder("sh", "-c", command.replaceFirst("^mvn ", maven))
                .directory(project.toFile())
                .redirectErrorStream(true);
        shell.environment().put("JAVA_HOME", System.getProperty("java.home"));
        // All are done before C2's code would pay, and C1 has none for vectors.
        shell.environment().put("MAVEN_OPTS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:MetaspaceSize=256m");
        shell.environment()
                .put("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Dtornadomoe.arithmetic=scalar");
        Path log = Files.createTempFile(project, "log", ".txt");
        Process process = shell.redirectOutput(log.toFile()).start();
        try {
            assertThat(process.waitFor(5, TimeUnit.MINUTES)).as(command).isTrue();
        } finally {
            process.descendants().forEach(ProcessHandle::destroyForcibly);
            process.destroyForcibly();
        }
        String output = Files.readString(log);
        assertThat(process.exitValue()).as("%s%n%s", command, output).isZero();
        return output;
    }
}
