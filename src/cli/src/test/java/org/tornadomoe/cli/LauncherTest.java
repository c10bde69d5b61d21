package org.tornadomoe.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.lang.classfile.ClassFile;
import java.lang.classfile.attribute.ModuleAttribute;
import java.lang.constant.ModuleDesc;
import java.lang.reflect.AccessFlag;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import java.util.zip.ZipEntry;
import java.util.zip.ZipOutputStream;
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
        Files.createFile(Files.createDirectories(home.resolve("src/cli/target")).resolve("tornado-moe-cli.jar"));
        sdk = home.resolve("sdk");
        Path jars = Files.createDirectories(sdk.resolve("share/java/tornado"));
        Files.createFile(jars.resolve("tornado-drivers-opencl-1.jar"));
        Files.createDirectory(sdk.resolve("lib"));
        Files.writeString(sdk.resolve("tornado-argfile"), "--module-path x\n");
        Files.createFile(Files.createDirectory(home.resolve("vendors")).resolve("a.icd"));
        Files.createFile(Files.createDirectory(home.resolve("libraries")).resolve("libOpenCL.so.1"));
    }

    /** @param libraries copies of this JVM's own, by their paths in the new one */
    private Path jdk(String name, String... libraries) throws Exception {
        Path jdk = Files.createDirectories(home.resolve(name));
        Files.writeString(jdk.resolve("release"), "JAVA_VERSION=\"25.0.3\"\n");
        Path java = Files.createDirectory(jdk.resolve("bin")).resolve("java");
        Files.writeString(java, """
            #!/bin/sh
            case $* in *--list-modules*) exec '%s/bin/java' "$@" ;; esac
            case $* in *jdk.incubator.vector*) echo 'WARNING: Using incubator modules: jdk.incubator.vector' >&2 ;; esac
            echo "LD_PRELOAD=${LD_PRELOAD:-none}"
            echo "$*"
            exit 3
            """.formatted(System.getProperty("java.home")));
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
        return moe(3, "devices", jdk, environment);
    }

    private List<String> moe(int status, String command, Path jdk, Map<String, String> environment) throws Exception {
        Path log = home.resolve("log");
        ProcessBuilder builder = new ProcessBuilder(home.resolve("moe").toString(), command)
                .redirectErrorStream(true)
                .redirectOutput(log.toFile());
        builder.environment().remove("LD_PRELOAD");
        builder.environment()
                .putAll(Map.of(
                        "JAVA_HOME", jdk.toString(),
                        "TORNADOVM_HOME", sdk.toString(),
                        "OCL_ICD_VENDORS", home.resolve("vendors").toString(),
                        "LD_LIBRARY_PATH", home.resolve("libraries").toString(),
                        "MOE_NO_BUILD", "1"));
        builder.environment().putAll(environment);
        Process moe = builder.start();
        try {
            assertThat(moe.waitFor(50, TimeUnit.SECONDS)).isTrue();
        } finally {
            moe.destroyForcibly();
        }
        List<String> lines = Files.readAllLines(log);
        assertThat(moe.exitValue()).as(String.join("\n", lines)).isEqualTo(status);
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

    /** A module of the SDK's in a jar of its own. */
    private Path module(String folder, String name, String version, String... requires) throws Exception {
        byte[] info = ClassFile.of().buildModule(ModuleAttribute.of(ModuleDesc.of(name), module -> {
            module.requires(ModuleDesc.of("java.base"), Set.of(AccessFlag.MANDATED), null);
            for (String other : requires) {
                module.requires(ModuleDesc.of(other), Set.of(), null);
            }
        }));
        Path jar = Files.createDirectories(sdk.resolve("share/java").resolve(folder))
                .resolve(name.replace('.', '-') + "-" + version + ".jar");
        try (ZipOutputStream zip = new ZipOutputStream(Files.newOutputStream(jar))) {
            zip.putNextEntry(new ZipEntry("module-info.class"));
            zip.write(info);
        }
        return jar;
    }

    /** The SDK of a version, with OpenCL and what needs a Mac. */
    private void sdkOf(String folder, String version, String compiler) throws Exception {
        sdk = home.resolve(folder);
        Files.createDirectories(sdk.resolve("lib"));
        module("tornado", "tornado.api", version);
        module("tornado", "tornado.annotation", version, "tornado.api");
        module("tornado", "tornado.runtime", version, "tornado.api", compiler);
        module("tornado", "tornado.drivers.common", version, "tornado.runtime");
        module("tornado", "tornado.drivers.opencl", version, "tornado.drivers.common");
        module("tornado", "tornado.drivers.metal", version, "tornado.drivers.common");
    }

    /** The argument file that a JVM is started with, and the names of the jars on its module path. */
    private List<String> trimmed() throws Exception {
        Path argfile = Path.of(moe(0, "--argfile", jdk("jdk"), Map.of()).getLast());
        List<String> lines = new ArrayList<>(Files.readAllLines(argfile));
        try (Stream<Path> jars = Files.list(argfile.resolveSibling("modules"))) {
            jars.map(jar -> "jar " + jar.getFileName()).sorted().forEach(lines::add);
        }
        return lines;
    }

    /** @param more what the module path has behind the folder of the modules that are here */
    private void assertModulePath(List<String> argfile, String more) {
        String path = argfile.stream()
                .filter(line -> line.startsWith("--module-path"))
                .findFirst()
                .orElseThrow();
        assertThat(path)
                .startsWith("--module-path \"" + home.resolve("target/sdk"))
                .endsWith("/modules" + more + "\"");
    }

    @Test
    void anArgumentFileOf5IsKeptButForWhatIsNotHere() throws Exception {
        sdkOf("tornadovm-5.2.0-jdk25-opencl", "5.2.0-jdk25", "jdk.graal.compiler");
        Path graal = module("graalJars", "jdk.graal.compiler", "25.0.2");
        Files.move(graal, graal.resolveSibling("compiler-25.0.2.jar"));
        Files.writeString(sdk.resolve("tornado-argfile"), """
            # === JVM ===
            -XX:+EnableJVMCI
            --enable-preview
            -Djava.library.path=/elsewhere/tornadovm/lib
            --module-path .:/elsewhere/tornadovm/share/java/tornado
            --upgrade-module-path /elsewhere/tornadovm/share/java/graalJars
            --add-modules ALL-SYSTEM,tornado.runtime,tornado.drivers.common,tornado.drivers.opencl,\
            tornado.drivers.metal,tornado.cublas
            --enable-native-access=tornado.drivers.opencl,tornado.drivers.metal
            --add-reads=tornado.drivers.metal=jdk.graal.compiler
            --add-exports=jdk.graal.compiler/some.of.it=tornado.runtime,tornado.drivers.metal
            --add-opens=jdk.graal.compiler/more.of.it=tornado.drivers.metal
            """);
        List<String> argfile = trimmed();
        assertModulePath(argfile, "");
        assertThat(argfile)
                .contains(
                        "-XX:+EnableJVMCI",
                        "--enable-preview",
                        "\"-Djava.library.path=" + sdk.resolve("lib") + "\"",
                        "--upgrade-module-path \"" + sdk.resolve("share/java/graalJars") + "\"",
                        "--add-modules ALL-SYSTEM,tornado.runtime,tornado.drivers.common,tornado.drivers.opencl",
                        "--enable-native-access=ALL-UNNAMED,tornado.drivers.opencl",
                        "--add-exports=jdk.graal.compiler/some.of.it=tornado.runtime",
                        "-Dtornado.recover.bailout=False",
                        "-Dtornado.cuda.priority=30",
                        "jar tornado-drivers-opencl-5.2.0-jdk25.jar")
                .noneMatch(line -> line.contains("metal") || line.contains("cublas") || line.startsWith("#"));
    }

    @Test
    void anArgumentFileOf6To8KeepsItsJvmciItsCompilerAndItsNativeAccess() throws Exception {
        sdkOf("tornadovm-8.2.0-jdk22plus-opencl", "8.2.0-jdk22plus", "tornado.graal");
        module("graalJars", "tornado.graal", "23.1.0");
        Files.createFile(
                Files.createDirectories(sdk.resolve("share/java/jvmci")).resolve("jvmci-21.0.2.jar"));
        Files.writeString(sdk.resolve("tornado-argfile"), """
            # Written by the SDK's own script
            -XX:+EnableJVMCI
            -Djava.library.path=${TORNADOVM_HOME}/lib
            --module-path .:${TORNADOVM_HOME}/share/java/tornado:${TORNADOVM_HOME}/share/java/graalJars
            -Djdk.internal.vm.ci.enabled=true
            --patch-module jdk.internal.vm.ci=${TORNADOVM_HOME}/share/java/jvmci/jvmci-21.0.2.jar
            --add-modules
            jdk.unsupported,jdk.jfr,tornado.graal,tornado.runtime,tornado.annotation,tornado.drivers.common,\
            tornado.drivers.opencl,tornado.nccl
            --enable-native-access=tornado.runtime
            --add-exports java.base/jdk.internal.misc=jdk.internal.vm.ci
            --add-exports tornado.graal/some.of.it=tornado.drivers.metal
            -Dtornado.home=${TORNADOVM_HOME}/etc
            """);
        List<String> argfile = trimmed();
        assertModulePath(argfile, ":" + sdk.resolve("share/java/graalJars"));
        assertThat(argfile)
                .contains(
                        "-Djdk.internal.vm.ci.enabled=true",
                        "--patch-module \"jdk.internal.vm.ci=" + sdk.resolve("share/java/jvmci/jvmci-21.0.2.jar")
                                + "\"",
                        "--add-modules jdk.unsupported,jdk.jfr,tornado.graal,tornado.runtime,tornado.annotation,"
                                + "tornado.drivers.common,"
                                + "tornado.drivers.opencl",
                        "--enable-native-access=ALL-UNNAMED,tornado.runtime,tornado.drivers.opencl",
                        "--add-exports=java.base/jdk.internal.misc=jdk.internal.vm.ci",
                        "-Dtornado.home=" + sdk.resolve("etc"))
                .noneMatch(line -> line.contains("metal") || line.contains("nccl") || line.contains("--upgrade"));
    }

    /** Whatever a module is called: one that TornadoVM itself needs stays, another where what it is for is here. */
    @Test
    void modulesOfLibrariesAreLeftOutByWhatTheyNeed() throws Exception {
        sdkOf("tornadovm-8.2.0-jdk22plus-opencl", "8.2.0-jdk22plus", "tornado.compiler");
        module("tornado", "tornado.compiler", "8.2.0-jdk22plus");
        module("tornado", "tornado.matrices", "8.2.0-jdk22plus", "tornado.api");
        for (String absent : List.of("tornado.cunosuch", "tornado.nosuchlibrary")) {
            module("tornado", absent, "8.2.0-jdk22plus", "tornado.runtime");
        }
        module("tornado", "tornado.found", "8.2.0-jdk22plus", "tornado.runtime");
        module("tornado", "tornado.onmacs", "8.2.0-jdk22plus", "tornado.drivers.metal");
        module("tornado", "tornado.incomplete", "8.2.0-jdk22plus", "tornado.nowhere");
        for (String library : List.of("libfound.so.3", "libonmacs.so", "libincomplete.so")) {
            Files.createFile(home.resolve("libraries").resolve(library));
        }
        Files.writeString(
                sdk.resolve("tornado-argfile"),
                "--module-path " + sdk.resolve("share/java/tornado")
                        + "\n--add-modules tornado.runtime,tornado.cunosuch,tornado.found,tornado.onmacs\n");
        assertThat(trimmed())
                .contains("--add-modules tornado.runtime,tornado.found,tornado.drivers.opencl")
                .filteredOn(line -> line.startsWith("jar "))
                .containsExactly(
                        "jar tornado-annotation-8.2.0-jdk22plus.jar",
                        "jar tornado-api-8.2.0-jdk22plus.jar",
                        "jar tornado-compiler-8.2.0-jdk22plus.jar",
                        "jar tornado-drivers-common-8.2.0-jdk22plus.jar",
                        "jar tornado-drivers-opencl-8.2.0-jdk22plus.jar",
                        "jar tornado-found-8.2.0-jdk22plus.jar",
                        "jar tornado-matrices-8.2.0-jdk22plus.jar",
                        "jar tornado-runtime-8.2.0-jdk22plus.jar");
    }

    @Test
    void anSdkForJdk21AloneIsNotUsed() throws Exception {
        sdkOf("tornadovm-8.2.0-jdk21-opencl", "8.2.0-jdk21", "tornado.graal");
        Files.writeString(sdk.resolve("tornado-argfile"), "--module-path x\n");
        assertThat(moe(jdk("jdk"), Map.of()))
                .anySatisfy(line ->
                        assertThat(line).contains("is for JDK 21 and no other").contains("-interpreter.jar:"));
    }

    /** As with a shell: standard output and standard error apart. */
    private record Said(int status, String out, String err) {}

    private Said started(Map<String, String> environment, String... words) throws Exception {
        Path out = home.resolve("out");
        Path err = home.resolve("err");
        ProcessBuilder builder = new ProcessBuilder(words);
        builder.environment().keySet().removeIf(name -> name.startsWith("MOE_") || name.equals("TORNADOVM_HOME"));
        builder.environment().putAll(environment);
        Process process =
                builder.redirectOutput(out.toFile()).redirectError(err.toFile()).start();
        try {
            assertThat(process.waitFor(50, TimeUnit.SECONDS)).isTrue();
        } finally {
            process.destroyForcibly();
        }
        return new Said(process.exitValue(), Files.readString(out), Files.readString(err));
    }

    /** A JDK with the Vector API, whose JVM says something on standard error. */
    private Map<String, String> jdkThatSays(String name, String... lines) throws Exception {
        Path jdk = jdk(name);
        Files.writeString(
                jdk.resolve("release"), "JAVA_VERSION=\"25.0.3\"\nMODULES=\"java.base jdk.incubator.vector\"\n");
        Files.writeString(
                jdk.resolve("bin/java"),
                "#!/bin/sh\nprintf '" + String.join("\\n", lines) + "' >&2\necho $*\nexit 3\n");
        return Map.of("JAVA_HOME", jdk.toString(), "MOE_NO_BUILD", "1", "HOME", home.toString());
    }

    private String moe() {
        return home.resolve("moe").toString();
    }

    /** With a JVM as it is, of this test's class path in place of the jars. */
    @Test
    void badInputIsOneLineWhateverJavaAndTheMachineHaveToSay() throws Exception {
        Files.writeString(
                home.resolve("moe"),
                Files.readString(Path.of("moe"))
                        .replace(
                                "-cp \"$interpreter:$libraries\"",
                                "-cp '" + System.getProperty("java.class.path") + "'"));
        String checkpoint =
                Path.of("src/test/resources/golden/hf/mixtral").toAbsolutePath().toString();
        Map<String, String> environment =
                Map.of("JAVA_HOME", System.getProperty("java.home"), "MOE_NO_BUILD", "1", "HOME", home.toString());
        for (String[] words : new String[][] {
            {moe(), "run", "nowhere"}, {moe(), "run", checkpoint, "--device", "cuda:0"}, {moe(), "fly"},
        }) {
            Said said = started(environment, words);
            assertThat(said.status()).as(said.err()).isEqualTo(Moe.BAD_INPUT);
            assertThat(said.out()).isEmpty();
            assertThat(said.err().lines())
                    .hasSize(1)
                    .allSatisfy(line -> assertThat(line).startsWith("moe"));
        }
    }

    @Test
    void onlyJavasWarningIsLeftOut() throws Exception {
        String warning = "WARNING: Using incubator modules: jdk.incubator.vector";
        Said said = started(jdkThatSays("quiet", warning, ""), moe(), "devices");
        assertThat(said.status()).isEqualTo(3);
        assertThat(said.out()).contains("--add-modules jdk.incubator.vector");
        assertThat(said.err()).isEmpty();
        Map<String, String> more = jdkThatSays("more", "Picked up X: -x", warning, "Error: no memory", "and no end");
        assertThat(started(more, "sh", "-c", moe() + " devices 2>&1 >/dev/null | cat")
                        .out())
                .isEqualTo("Picked up X: -x\nError: no memory\nand no end");
        Map<String, String> other = jdkThatSays("other", "Error: no memory", warning, "");
        assertThat(started(other, "sh", "-c", moe() + " devices 2>&1 >/dev/null | cat")
                        .out())
                .isEqualTo("Error: no memory\n" + warning + "\n");
        assertThat(started(more, moe(), "--help").out()).doesNotContain("jdk.incubator.vector");
    }

    private Said built(String wrapper) throws Exception {
        Files.writeString(home.resolve("mvnw"), "#!/bin/sh\n" + wrapper);
        assertThat(home.resolve("mvnw").toFile().setExecutable(true)).isTrue();
        String jdk = jdk("jdk" + wrapper.length()).toString();
        return started(Map.of("JAVA_HOME", jdk, "HOME", home.toString()), moe(), "--help");
    }

    @Test
    void aBuildIsToldAndWhatGoesWrongIsNamed() throws Exception {
        assertThat(built("exit 0").err().lines()).containsExactly("moe: building");
        Files.delete(home.resolve("src/cli/target/tornado-moe-cli.jar"));
        Said offline = built("echo '[ERROR] repo.maven.apache.org: Unknown host'; exit 1");
        assertThat(offline.status()).isEqualTo(Moe.BAD_INPUT);
        assertThat(offline.err().lines())
                .hasSize(2)
                .first()
                .asString()
                .startsWith("moe: building, once; what it needs is downloaded");
        assertThat(offline.err()).contains("moe: no network: ");
        assertThat(built("echo noise; echo '[ERROR] cannot find symbol'; exit 1")
                        .err()
                        .lines()
                        .skip(1))
                .containsExactly(
                        "[ERROR] cannot find symbol", "moe: the build failed: see " + home + "/target/moe.log");
    }

    @Test
    void withoutAJdkOf25ItSaysWhatIsThereAndWhatToDo() throws Exception {
        Path old = jdk("old");
        Files.writeString(old.resolve("release"), "JAVA_VERSION=\"17.0.15\"\n");
        Files.writeString(
                home.resolve("moe"),
                Files.readString(Path.of("moe")).replace("/usr/lib/jvm/* /usr/java/* /opt/java/* /opt/jdk*", ""));
        Said said = started(
                Map.of("JAVA_HOME", "", "HOME", home.toString(), "PATH", old.resolve("bin") + ":/usr/bin:/bin"),
                moe(),
                "devices");
        assertThat(said.status()).isEqualTo(Moe.BAD_INPUT);
        assertThat(said.err().lines())
                .hasSize(1)
                .first()
                .asString()
                .startsWith("moe: no JDK 25 or newer here" + " (the java on the path is 17.0.15): get one with");
    }

    /** A file where the build's folder would be: not even the superuser can write into it. */
    @Test
    void aCheckoutThatCannotBeWrittenRunsWhatIsBuiltOrSaysWhatToDo() throws Exception {
        Files.delete(home.resolve("target/lib"));
        Files.delete(home.resolve("target"));
        Files.createFile(home.resolve("target"));
        Map<String, String> environment = Map.of("JAVA_HOME", jdk("jdk").toString(), "HOME", home.toString());
        Said said = started(environment, moe(), "--help");
        assertThat(said.status()).as(said.err()).isEqualTo(3);
        assertThat(said.err()).contains("running what is built there").hasLineCount(1);
        Files.delete(home.resolve("src/cli/target/tornado-moe-cli.jar"));
        said = started(environment, moe(), "--help");
        assertThat(said.status()).isEqualTo(Moe.BAD_INPUT);
        assertThat(said.err()).contains("nothing can be written there: copy it").hasLineCount(1);
    }
}
