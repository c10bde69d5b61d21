package org.tornadomoe.build;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Locale;
import java.util.Map;
import java.util.regex.MatchResult;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * Sources that are made of others, so that they can't drift apart; with {@code -Dgenerate.apply=true} they are
 * rewritten. They are in the repository because TornadoVM's compilers want a method of its own for each kernel, and its
 * API a class for each type: readers and debuggers find them where they look.
 */
class GeneratedSourceTest {
    private static final Path ARRAYS =
            Path.of("src/interpreter/src/main/java/uk/ac/manchester/tornado/api/types/arrays");
    private static final Path KERNELS = Path.of("src/core/src/main/java/org/tornadomoe/tornado/kernels");

    private static void assertGenerated(Path file, String expected) throws IOException {
        if (Boolean.getBoolean("generate.apply")) {
            Files.writeString(file, expected);
        }
        assertThat(Files.readString(file))
                .as(
                        "%s, to rewrite: ./mvnw -pl src/core -am test -Dtest=GeneratedSourceTest -Dgenerate.apply=true",
                        file)
                .isEqualTo(expected);
    }

    /** From {@code IntArray}; bytes, int8 and half-precision floats have members of their own. */
    @ParameterizedTest
    @CsvSource({"short, Short, 2", "char, Char, 2", "float, Float, 4", "long, Long, 8", "double, Double, 8"})
    void arraysOfNumbers(String type, String name, int bytes) throws IOException {
        Map<String, String> words = Map.of(
                "int", type,
                "IntArray", name + "Array",
                "IntBuffer", name + "Buffer",
                "fromIntBuffer", "from" + name + "Buffer",
                "OfInt", "Of" + name,
                "JAVA_INT", "JAVA_" + type.toUpperCase(Locale.ROOT),
                "4", Integer.toString(bytes));
        String kept = "int (?:numberOfElements|size|index|offset|length|i)\\b|int getElementSize|int getSize";
        String source = Pattern.compile(kept + "|\\w+")
                .matcher(Files.readString(ARRAYS.resolve("IntArray.java")))
                .replaceAll(word -> words.getOrDefault(word.group(), word.group()))
                .replace("(long) index << 2", "(long) index << " + Integer.numberOfTrailingZeros(bytes));
        assertGenerated(ARRAYS.resolve(name + "Array.java"), source);
    }

    /** The kernel without {@code dp4a} from the one with it, which OpenCL's compiler takes in no branch at all. */
    @Test
    void thePortableKernel() throws IOException {
        Path file = KERNELS.resolve("GemmKernels.java");
        String source = Files.readString(file);
        String portable = method(source, "dp4a")
                .replace("void dp4a(", "void portable(")
                .replaceAll("QuantizationUtils\\.dp4a_packed\\((weights, .+), (\\w+)\\);", "$2 + product4($1);");
        assertThat(portable).doesNotContain("dp4a");
        assertGenerated(file, source.replace(method(source, "portable"), portable));
    }

    private static String method(String source, String name) {
        return Pattern.compile("    public static void " + name + "\\(.*?\n    }\n", Pattern.DOTALL)
                .matcher(source)
                .results()
                .map(MatchResult::group)
                .findFirst()
                .orElseThrow();
    }

    @Test
    void aDifferenceIsSeen() {
        String two = "    public static void a(int x) {\n        x++;\n    }\n\n    public static void b() {\n    }\n";
        assertThat(method(two, "a")).isEqualTo("    public static void a(int x) {\n        x++;\n    }\n");
        assertThat(method(two, "b")).isEqualTo("    public static void b() {\n    }\n");
    }
}
