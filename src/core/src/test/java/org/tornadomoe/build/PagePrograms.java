package org.tornadomoe.build;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.tools.ToolProvider;

/**
 * The programs of a page of the documentation, each under its file's name, and JVMs that run them as they stand there.
 */
final class PagePrograms {
    static final String CHECKPOINT = "src/test/resources/golden/hf/mixtral";

    private static final Pattern PROGRAM = Pattern.compile("`(\\w+\\.java)`:\n\n```java\n(.*?)```\n", Pattern.DOTALL);

    private final Path folder;
    private final String page;
    private final Map<String, String> sources = new LinkedHashMap<>();

    /** @param folder for sources and logs */
    PagePrograms(Path page, Path folder) throws IOException {
        this.folder = folder;
        this.page = Files.readString(page);
        Matcher program = PROGRAM.matcher(this.page);
        while (program.find()) {
            sources.put(program.group(1), program.group(2));
        }
    }

    /** That these are all, and that no Java on the page is anything else. */
    void assertThatAllAre(String... names) {
        assertThat(sources.keySet()).containsExactly(names);
        assertThat(page.split("```java", -1)).hasSize(1 + names.length);
    }

    /** What a program prints that ends well. */
    String run(String name, String... args) throws IOException, InterruptedException {
        return run(List.of(), name, args);
    }

    /** @param options of the JVM, besides those that it needs */
    String run(List<String> options, String name, String... args) throws IOException, InterruptedException {
        assertThat(sources).containsKey(name);
        String classPath = System.getProperty("surefire.test.class.path", System.getProperty("java.class.path"));
        Path source = Files.writeString(folder.resolve(name), sources.get(name));
        ByteArrayOutputStream said = new ByteArrayOutputStream();
        int status = ToolProvider.getSystemJavaCompiler()
                .run(null, said, said, "-proc:none", "-cp", classPath, "-d", folder.toString(), source.toString());
        assertThat(status).as(said.toString(StandardCharsets.UTF_8)).isZero();
        List<String> command = new ArrayList<>(List.of(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1", // done before C2's code would pay
                "-Dtornadomoe.arithmetic=scalar", // C1 has no code for vectors
                "--add-modules",
                "jdk.incubator.vector",
                "-cp",
                folder + File.pathSeparator + classPath));
        command.addAll(options);
        command.add(name.replace(".java", ""));
        command.addAll(List.of(args));
        Path log = folder.resolve("log");
        Process jvm = new ProcessBuilder(command)
                .redirectErrorStream(true)
                .redirectOutput(log.toFile())
                .start();
        try {
            assertThat(jvm.waitFor(2, TimeUnit.MINUTES)).isTrue();
        } finally {
            jvm.destroyForcibly();
        }
        String output = Files.readString(log);
        assertThat(jvm.exitValue()).as(output).isZero();
        return output;
    }
}
