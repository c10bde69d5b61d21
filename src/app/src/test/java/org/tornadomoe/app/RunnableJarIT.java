package org.tornadomoe.app;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.File;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;

/** The command in one file, started as its users do. */
@Timeout(300)
class RunnableJarIT {
    private static final String CHECKPOINT = "src/test/resources/golden/hf/mixtral";
    private static final Path JAR = Path.of("src/app/target/moe.jar");

    @TempDir
    Path folder;

    private record Said(int status, String out, String err) {}

    private Said java(Path home, String... args) throws Exception {
        Path jar = Files.copy(JAR, folder.resolve("moe.jar"), java.nio.file.StandardCopyOption.REPLACE_EXISTING);
        List<String> command = new ArrayList<>(List.of(home.resolve("bin/java").toString(), "-jar", jar.toString()));
        command.addAll(List.of(args));
        ProcessBuilder builder = new ProcessBuilder(command);
        builder.environment().keySet().removeIf(name -> name.startsWith("MOE_") || name.equals("TORNADOVM_HOME"));
        builder.environment().put("JAVA_HOME", System.getProperty("java.home"));
        File out = folder.resolve("out").toFile();
        File err = folder.resolve("err").toFile();
        Process process = builder.redirectOutput(out).redirectError(err).start();
        try {
            assertThat(process.waitFor(200, TimeUnit.SECONDS)).isTrue();
        } finally {
            process.destroyForcibly();
        }
        return new Said(process.exitValue(), Files.readString(out.toPath()), Files.readString(err.toPath()));
    }

    private static Path thisJdk() {
        return Path.of(System.getProperty("java.home"));
    }

    @Test
    void runsALayer() throws Exception {
        Said said = java(thisJdk(), "run", CHECKPOINT, "--seconds", "0");
        assertThat(said.status()).as(said.err()).isZero();
        assertThat(said.out()).contains("mixtral, layer 0", "CpuExperts", "-bit vectors", "relative L2");
        assertThat(said.err().lines())
                .containsExactly("moe: no TornadoVM SDK (TORNADOVM_HOME is not set): running on the CPU");
        said = java(
                thisJdk(), "run", CHECKPOINT, "--seconds", "0", "--tokens", "1", "--backend", "triton", "--no-check");
        assertThat(said.out()).contains("interpreter:0");
    }

    @Test
    void badInputIsOneLineAndItsStatus() throws Exception {
        Said said = java(thisJdk(), "run", "nowhere");
        assertThat(said.status()).isEqualTo(2);
        assertThat(said.out()).isEmpty();
        assertThat(said.err().lines()).hasSize(1).first().asString().startsWith("moe: nowhere: no such checkpoint");
    }

    @Test
    void knowsItsVersion() throws Exception {
        assertThat(java(thisJdk(), "--version").out()).matches("tornado-moe \\d+\\.\\d+\\.\\d+\\R");
    }

    /** Its own JVM is new enough, whatever starts it. */
    @Test
    void anOlderJavaStartsItAsWell() throws Exception {
        Path old;
        try (Stream<Path> homes = Files.list(Path.of("/usr/lib/jvm"))) {
            old = homes.filter(home -> home.toString().matches(".*[^0-9](8|11|17|21)[^0-9].*"))
                    .filter(home -> Files.isExecutable(home.resolve("bin/java")))
                    .findFirst()
                    .orElse(null);
        } catch (java.nio.file.NoSuchFileException none) {
            old = null;
        }
        assumeTrue(old != null, "no older Java here");
        assertThat(java(old, "--version").status()).isZero();
    }
}
