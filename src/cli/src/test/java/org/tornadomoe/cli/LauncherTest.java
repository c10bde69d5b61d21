package org.tornadomoe.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.condition.EnabledOnOs;
import org.junit.jupiter.api.condition.OS;
import org.junit.jupiter.api.io.TempDir;

/** What the launcher starts a JVM with: a JDK whose {@code java} prints it, and an SDK of one backend. */
@EnabledOnOs(OS.LINUX)
@Timeout(60)
class LauncherTest {
    @TempDir
    Path home;

    private Path sdk = Path.of("");

    @BeforeEach
    void layOut() throws Exception {
        Files.copy(Path.of("moe"), home.resolve("moe"));
        Files.createDirectories(home.resolve("target/lib"));
        Files.createFile(
                Files.createDirectories(home.resolve("src/cli/target")).resolve("tornado-moe-cli.jar"));
        sdk = home.resolve("sdk");
        Path jars = Files.createDirectories(sdk.resolve("share/java/tornado"));
        Files.createFile(jars.resolve("tornado-drivers-opencl-1.jar"));
        Files.createDirectory(sdk.resolve("lib"));
        Files.writeString(sdk.resolve("tornado-argfile"), "--module-path x\n");
        Files.createFile(Files.createDirectory(home.resolve("vendors")).resolve("a.icd"));
    }

    /** @param libraries copies of this JVM's own, by their paths in the new one */
    private Path jdk(String name, String... libraries) throws Exception {
        Path jdk = Files.createDirectories(home.resolve(name));
        Files.writeString(jdk.resolve("release"), "JAVA_VERSION=\"25.0.3\"\n");
        Path java = Files.createDirectory(jdk.resolve("bin")).resolve("java");
        Files.writeString(java, "#!/bin/sh\necho \"LD_PRELOAD=${LD_PRELOAD:-none}\"\necho \"$*\"\nexit 3\n");
        assertThat(java.toFile().setExecutable(true)).isTrue();
        for (String library : libraries) {
            Files.createDirectories(jdk.resolve(library).getParent());
            Files.copy(jsig(), jdk.resolve(library));
        }
        return jdk;
    }

    private static Path jsig() {
        return Stream.of("lib/server/libjsig.so", "lib/libjsig.so")
                .map(name -> Path.of(System.getProperty("java.home"), name))
                .filter(Files::exists)
                .findFirst()
                .orElseThrow();
    }

    private List<String> moe(Path jdk, Map<String, String> environment) throws Exception {
        Path log = home.resolve("log");
        ProcessBuilder builder = new ProcessBuilder(home.resolve("moe").toString(), "devices")
                .redirectErrorStream(true)
                .redirectOutput(log.toFile());
        builder.environment().remove("LD_PRELOAD");
        builder.environment()
                .putAll(Map.of(
                        "JAVA_HOME", jdk.toString(),
                        "TORNADOVM_HOME", sdk.toString(),
                        "OCL_ICD_VENDORS", home.resolve("vendors").toString(),
                        "MOE_NO_BUILD", "1"));
        builder.environment().putAll(environment);
        Process moe = builder.start();
        try {
            assertThat(moe.waitFor(50, TimeUnit.SECONDS)).isTrue();
        } finally {
            moe.destroyForcibly();
        }
        List<String> lines = Files.readAllLines(log);
        assertThat(moe.exitValue()).as(String.join("\n", lines)).isEqualTo(3);
        return lines;
    }

    @Test
    void theJdksLibjsigIsPreloadedWhereTornadoVmIs() throws Exception {
        for (String library : List.of("lib/libjsig.so", "lib/server/libjsig.so")) {
            Path jdk = jdk(library.replace('/', '-'), library);
            assertThat(moe(jdk, Map.of()))
                    .contains("LD_PRELOAD=" + jdk.resolve(library))
                    .anySatisfy(line -> assertThat(line).startsWith("@").contains("org.tornadomoe.cli.Moe devices"));
        }
    }

    @Test
    void whatTheUserPreloadsStaysBeforeIt() throws Exception {
        Path jdk = jdk("jdk", "lib/libjsig.so");
        String users = Files.copy(jsig(), home.resolve("users.so")).toString();
        assertThat(moe(jdk, Map.of("LD_PRELOAD", users)))
                .contains("LD_PRELOAD=" + users + ":" + jdk.resolve("lib/libjsig.so"));
    }

    @Test
    void withoutOneOrWithAPathThatTheVariableCannotHoldItStartsAllTheSame() throws Exception {
        assertThat(moe(jdk("none"), Map.of())).contains("LD_PRELOAD=none");
        assertThat(moe(jdk("a blank", "lib/libjsig.so"), Map.of())).contains("LD_PRELOAD=none");
    }

    @Test
    void withoutAnSdkNothingIsPreloaded() throws Exception {
        assertThat(moe(jdk("jdk", "lib/libjsig.so"), Map.of("MOE_NO_SDK", "1")))
                .contains("LD_PRELOAD=none")
                .anySatisfy(line -> assertThat(line).contains("/tornado-moe-interpreter.jar:"));
    }
}
