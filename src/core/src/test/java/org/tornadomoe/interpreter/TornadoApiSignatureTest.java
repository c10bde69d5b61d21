package org.tornadomoe.interpreter;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.io.InputStream;
import java.lang.classfile.Attributes;
import java.lang.classfile.ClassFile;
import java.lang.classfile.ClassModel;
import java.lang.classfile.FieldModel;
import java.lang.classfile.MethodModel;
import java.lang.reflect.AccessFlag;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Set;
import java.util.TreeSet;
import java.util.jar.JarEntry;
import java.util.jar.JarFile;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import uk.ac.manchester.tornado.api.runtime.TornadoRuntimeProvider;

/**
 * What the interpreter declares of TornadoVM's API is declared there too, with the same descriptor, so that classes
 * compiled against the one run on the other; but for what only later versions have. With {@code TORNADOVM_HOME} it is
 * compared with the SDK's jars, of 5.2.0; elsewhere with the list of an earlier comparison, which
 * {@code -Dtornadomoe.record} rewrites. In an SDK of another version, or its jars in {@code -Dtornadomoe.api}, what the
 * library uses is looked for.
 */
class TornadoApiSignatureTest {
    private static final Path RECORD = ApiSignatures.OLDER;
    private static final String OURS_ALONE = "uk/ac/manchester/tornado/api/interpreter/";

    @Test
    void everySignatureIsTornadoVMs() throws IOException {
        Set<String> ours = ours();
        assertThat(ours).contains("method uk/ac/manchester/tornado/api/KernelContext.localBarrier()V public");
        List<Path> jars = sdkJars();
        if (!jars.isEmpty() && !jars.toString().contains("-5.2.0")) {
            ApiSignatures.Newer newer = ApiSignatures.newer();
            Set<String> used = new TreeSet<>(newer.lines().keySet());
            used.removeAll(newer.added());
            assertThat(ApiSignatures.missing(theirs(jars), used))
                    .as("used, and not in %s", jars)
                    .isEmpty();
        } else if (!jars.isEmpty()) {
            assertThat(theirs(jars)).as("signatures in %s", jars).containsAll(ours);
            if (System.getProperty("tornadomoe.record") != null) {
                Files.write(RECORD, ours);
            }
        }
        assertThat(new TreeSet<>(Files.readAllLines(RECORD)))
                .as("signatures compared with an SDK, see the class's comment")
                .containsAll(ours);
    }

    @Test
    void aDifferenceIsSeen() throws IOException {
        Set<String> ours = ours();
        assertThat(ours)
                .contains("field uk/ac/manchester/tornado/api/enums/DataTransferMode.EVERY_EXECUTION I public static"
                        + " final = 1")
                .contains("method uk/ac/manchester/tornado/api/TornadoExecutionPlan.close()V public throws"
                        + " uk/ac/manchester/tornado/api/exceptions/TornadoExecutionPlanException")
                .contains("class uk/ac/manchester/tornado/api/types/arrays/IntArray public final extends"
                        + " uk/ac/manchester/tornado/api/types/arrays/TornadoNativeArray");
        assertThat(ours).noneMatch(line -> line.contains(OURS_ALONE));
    }

    /** Those of the API, and of the runtime, which has what library tasks are provided through. */
    private static List<Path> sdkJars() throws IOException {
        String given = System.getProperty("tornadomoe.api");
        String home = System.getenv("TORNADOVM_HOME");
        if (given == null && (home == null || home.isBlank())) {
            return List.of();
        }
        Path folder = given != null ? Path.of(given) : Path.of(home, "share/java/tornado");
        try (Stream<Path> jars = Files.list(folder)) {
            List<Path> found = jars.filter(jar -> jar.getFileName().toString().matches("tornado-(api|runtime)-.*"))
                    .toList();
            if (found.size() != 2) {
                throw new IOException("no tornado-api and tornado-runtime jars in " + folder);
            }
            return found;
        }
    }

    private static Set<String> ours() throws IOException {
        Set<String> lines = new TreeSet<>();
        ApiSignatures.classesBeside(TornadoRuntimeProvider.class, "uk").forEach(type -> describe(type, lines));
        for (String added : ApiSignatures.newer().added()) {
            String[] words = added.split(" ", -1);
            lines.removeIf(line -> line.startsWith(words[0] + " " + words[1] + words[2] + " "));
        }
        return lines;
    }

    private static Set<String> theirs(List<Path> jars) throws IOException {
        Set<String> lines = new TreeSet<>();
        for (Path jar : jars) {
            try (JarFile file = new JarFile(jar.toFile())) {
                List<JarEntry> classes = file.stream()
                        .filter(e ->
                                e.getName().startsWith("uk/") && e.getName().endsWith(".class"))
                        .toList();
                for (JarEntry entry : classes) {
                    try (InputStream in = file.getInputStream(entry)) {
                        describe(ClassFile.of().parse(in.readAllBytes()), lines);
                    }
                }
            }
        }
        return lines;
    }

    /** A line for the class, one for each interface, and one for each member that others may use. */
    private static void describe(ClassModel type, Set<String> lines) {
        String name = type.thisClass().asInternalName();
        if (name.startsWith(OURS_ALONE) || !type.flags().has(AccessFlag.PUBLIC)) {
            return;
        }
        lines.add("class " + name + flags(type.flags().flags()) + " extends "
                + type.superclass().orElseThrow().asInternalName());
        type.interfaces().forEach(i -> lines.add("interface " + name + " implements " + i.asInternalName()));
        for (FieldModel field : type.fields()) {
            if (isOffered(field.flags().flags())) {
                String constant = field.findAttribute(Attributes.constantValue())
                        .map(value -> " = " + value.constant().constantValue())
                        .orElse("");
                lines.add("field " + name + "." + field.fieldName().stringValue() + " "
                        + field.fieldType().stringValue() + flags(field.flags().flags()) + constant);
            }
        }
        for (MethodModel method : type.methods()) {
            if (isOffered(method.flags().flags())) {
                String exceptions = method.findAttribute(Attributes.exceptions())
                        .map(attribute -> attribute.exceptions().stream()
                                .map(e -> e.asInternalName())
                                .sorted()
                                .collect(Collectors.joining(",", " throws ", "")))
                        .orElse("");
                lines.add("method " + name + "." + method.methodName().stringValue()
                        + method.methodType().stringValue()
                        + flags(method.flags().flags()) + exceptions);
            }
        }
    }

    private static boolean isOffered(Set<AccessFlag> flags) {
        return (flags.contains(AccessFlag.PUBLIC) || flags.contains(AccessFlag.PROTECTED))
                && !flags.contains(AccessFlag.SYNTHETIC);
    }

    private static String flags(Set<AccessFlag> flags) {
        List<AccessFlag> compared = new ArrayList<>(List.of(
                AccessFlag.PUBLIC,
                AccessFlag.PROTECTED,
                AccessFlag.STATIC,
                AccessFlag.FINAL,
                AccessFlag.ABSTRACT,
                AccessFlag.INTERFACE,
                AccessFlag.ENUM,
                AccessFlag.ANNOTATION));
        compared.retainAll(flags);
        return compared.stream()
                .map(flag -> " " + flag.name().toLowerCase(Locale.ROOT))
                .collect(Collectors.joining());
    }
}
