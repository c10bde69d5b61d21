package org.tornadomoe.build;

import static org.assertj.core.api.Assertions.assertThat;

import com.tngtech.archunit.core.domain.JavaClass;
import com.tngtech.archunit.core.domain.JavaClasses;
import com.tngtech.archunit.core.importer.ClassFileImporter;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.jar.JarFile;
import java.util.stream.Collectors;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.tornadomoe.MoeLayer;
import uk.ac.manchester.tornado.api.TaskGraph;

/**
 * Imports point one way, in the modules above this one by tests there. Each rule is also run on classes under {@code
 * fixture} that break it.
 */
public class ImportDirectionTest {
    private static final String LIBRARY = "org.tornadomoe";
    private static final String TORNADO_API = "uk.ac.manchester.tornado.api";

    /** Each package, then those of the library it may import; (door) is the package with MoeLayer. */
    private static final Map<String, Set<String>> MAY_IMPORT = table("""
        config
        quant               config
        checkpoint.file
        checkpoint.family   config checkpoint.file
        checkpoint.weights  config quant checkpoint.file checkpoint.family
        checkpoint          config quant checkpoint.file checkpoint.family checkpoint.weights
        tuning              config
        kernel              config quant tuning
        reference           config quant kernel
        host                config quant kernel
        cpu                 config quant kernel host
        tornado.kernels
        tornado.device      quant kernel tornado.kernels
        tornado.cuda        kernel tornado.device tornado.kernels
        tornado.layout      config quant tornado.device
        tornado.graph       config quant kernel tuning tornado.layout tornado.cuda tornado.device tornado.kernels
        tornado             config quant kernel tuning host tornado.graph tornado.cuda tornado.device tornado.kernels
        oracle              config quant kernel tuning
        parallel            config quant kernel host oracle
        observe
        (door)              config quant kernel reference host oracle parallel checkpoint observe
        spark               config quant kernel host checkpoint (door)
        cli                 config quant kernel reference tornado tornado.device oracle parallel checkpoint \
                            checkpoint.file tuning (door)
        """);

    /** Libraries that only some packages may import, by the start of their class names. */
    private static final Map<String, Set<String>> ONLY_IN = Map.of(
            "uk.ac.manchester.",
                    Set.of(
                            "tornado",
                            "tornado.graph",
                            "tornado.layout",
                            "tornado.cuda",
                            "tornado.device",
                            "tornado.kernels"),
            "picocli.", Set.of("cli"),
            "me.tongfei.", Set.of("cli"),
            "org.knowm.", Set.of("cli"),
            "io.micrometer.", Set.of("observe"),
            "jdk.jfr.", Set.of("observe"),
            "org.apache.spark.", Set.of("spark"),
            "scala.", Set.of("spark"),
            "tools.jackson.", Set.of("checkpoint.file", "checkpoint", "tuning", "cli"));

    /** The most classes that may know each other, directly or through others. */
    private static final int MAX_RING = 3;

    /** Names that TornadoVM's code generators or the languages they write take for themselves. */
    private static final Set<String> DEVICE_WORDS = Set.of("""
        kernel global local constant private half uniform pipe auto complex channel register
        restrict inline extern signed unsigned struct union typedef volatile sizeof goto dot cross
        distance length normalize mad fma mix step smoothstep sign select clamp min max abs exp log
        pow sqrt rsqrt floor ceil round rint trunc fabs fmin fmax fmod sin cos tan tanh erf isnan
        isinf any all bitselect shuffle shuffle2 popcount clz rotate hypot ldexp frexp modf barrier
        printf assert main atomicAdd atomicMax atomicMin atomicCAS atomicExch threadIdx blockIdx
        blockDim gridDim warpSize
        """.strip().split("\\s+"));

    private static final JavaClasses CLASSES = classesBeside(MoeLayer.class);
    private static final JavaClasses FIXTURES = classesBeside(ImportDirectionTest.class);
    private static final JavaClasses INTERPRETER = classesBeside(TaskGraph.class);

    @Test
    void importsPointOneWay() {
        assertThat(wrongImports(LIBRARY, CLASSES)).isEmpty();
    }

    @Test
    void importsThatPointBackAreFound() {
        assertThat(wrongImports(LIBRARY + ".build.fixture", FIXTURES))
                .containsExactlyInAnyOrder(
                        "config.Upward imports quant.Above",
                        "quant.Above imports jdk.jfr.Event",
                        "tornado.device.UpToTheGraph imports tornado.graph.Ring",
                        "tornado.kernels.Greedy imports config.Upward",
                        "tornado.kernels.Greedy imports org.junit.jupiter.api.Tag");
    }

    @Test
    void noImportIsAllowedThatNobodyNeeds() {
        assertThat(unusedImports(LIBRARY, CLASSES)).isEmpty();
    }

    @Test
    void allowedImportsThatNobodyNeedsAreFound() {
        assertThat(unusedImports(LIBRARY + ".build.fixture", FIXTURES)).contains("quant imports nothing of config");
    }

    @Test
    void interpreterImportsOnlyTheJdk() {
        assertThat(importsBeyondJava(TORNADO_API, INTERPRETER)).isEmpty();
    }

    @Test
    void interpreterThatReachesOutIsFound() {
        assertThat(importsBeyondJava(LIBRARY + ".build.fixture.quant", FIXTURES))
                .containsExactly(LIBRARY + ".build.fixture.quant.Above imports jdk.jfr.Event");
    }

    @Test
    void kernelNamesAreFreeOnEveryDevice() {
        assertThat(takenNames(LIBRARY, CLASSES)).isEmpty();
    }

    @Test
    void kernelNamesThatADeviceTakesAreFound() {
        assertThat(takenNames(LIBRARY + ".build.fixture", FIXTURES)).containsExactly("tornado.kernels.Greedy.clamp");
    }

    @Test
    void kernelsPassNoLocalArraysOn() {
        assertThat(arraysPassedOn(LIBRARY, CLASSES)).isEmpty();
    }

    @Test
    void localArraysThatArePassedOnAreFound() {
        assertThat(arraysPassedOn(LIBRARY + ".build.fixture", FIXTURES)).containsExactly("tornado.kernels.Greedy.sum");
    }

    @Test
    void classesThatKnowEachOtherAreFew() {
        assertThat(rings(LIBRARY + ".tornado", CLASSES)).isEmpty();
        assertThat(rings(LIBRARY + ".checkpoint", CLASSES)).isEmpty();
    }

    @Test
    void classesThatKnowEachOtherAreFound() {
        String fixture = LIBRARY + ".build.fixture.tornado.graph.Ring";
        assertThat(rings(LIBRARY + ".build.fixture", FIXTURES))
                .containsExactly(
                        new TreeSet<>(List.of(fixture, fixture + "OfTwo", fixture + "OfThree", fixture + "OfFour")));
    }

    private static Map<String, Set<String>> table(String rows) {
        return rows.lines().map(row -> row.split(" +")).collect(Collectors.toMap(row -> row[0], Set::of));
    }

    private static List<String> wrongImports(String root, JavaClasses classes) {
        List<String> wrong = new ArrayList<>();
        for (JavaClass from : classes) {
            String home = packageUnder(root, from);
            if (home == null) {
                continue;
            }
            for (JavaClass to : importsOf(from)) {
                String there = packageUnder(root, to);
                boolean allowed;
                if (there != null) {
                    // its own package stands in its row too
                    allowed = MAY_IMPORT.getOrDefault(home, Set.of()).contains(there);
                } else if (home.equals("tornado.kernels")) {
                    allowed = to.getName().startsWith("java.")
                            || to.getName().startsWith(TORNADO_API + ".")
                            || to.getName().startsWith("org.jspecify.");
                } else {
                    allowed = ONLY_IN.entrySet().stream()
                            .noneMatch(library -> to.getName().startsWith(library.getKey())
                                    && !library.getValue().contains(home));
                }
                if (!allowed) {
                    wrong.add(shortName(root, from) + " imports " + shortName(root, to));
                }
            }
        }
        return wrong;
    }

    /** What the table allows to packages that are there, and none of their classes does. */
    private static List<String> unusedImports(String root, JavaClasses classes) {
        Map<String, Set<String>> used = new TreeMap<>();
        for (JavaClass from : classes) {
            String home = packageUnder(root, from);
            if (home != null) {
                Set<String> there = used.computeIfAbsent(home, _ -> new TreeSet<>(Set.of(home)));
                importsOf(from).stream()
                        .map(to -> packageUnder(root, to))
                        .filter(Objects::nonNull)
                        .forEach(there::add);
            }
        }
        List<String> unused = new ArrayList<>();
        used.forEach((home, there) -> MAY_IMPORT.getOrDefault(home, Set.of()).stream()
                .filter(allowed -> !there.contains(allowed))
                .sorted()
                .forEach(allowed -> unused.add(home + " imports nothing of " + allowed)));
        return unused;
    }

    private static List<String> importsBeyondJava(String root, JavaClasses classes) {
        List<String> beyond = new ArrayList<>();
        for (JavaClass from : classes) {
            if (packageUnder(root, from) == null) {
                continue;
            }
            for (JavaClass to : importsOf(from)) {
                if (!to.getName().startsWith("java.") && packageUnder(root, to) == null) {
                    beyond.add(from.getName() + " imports " + to.getName());
                }
            }
        }
        return beyond;
    }

    private static List<String> takenNames(String root, JavaClasses classes) {
        List<String> taken = new ArrayList<>();
        for (JavaClass kernels : classes) {
            if ("tornado.kernels".equals(packageUnder(root, kernels))) {
                kernels.getMethods().stream()
                        .filter(method -> DEVICE_WORDS.contains(method.getName()))
                        .forEach(method -> taken.add(shortName(root, kernels) + "." + method.getName()));
            }
        }
        return taken;
    }

    /** TornadoVM 5.2.0 compiles a method that takes a local array, and it computes something else. */
    private static List<String> arraysPassedOn(String root, JavaClasses classes) {
        List<String> passed = new ArrayList<>();
        for (JavaClass kernels : classes) {
            if ("tornado.kernels".equals(packageUnder(root, kernels))) {
                kernels.getMethods().stream()
                        .filter(method -> method.getRawParameterTypes().stream().anyMatch(JavaClass::isArray))
                        .forEach(method -> passed.add(shortName(root, kernels) + "." + method.getName()));
            }
        }
        return passed;
    }

    /** Files below root that can be reached from each other, where they are more than {@link #MAX_RING}. */
    private static Set<Set<String>> rings(String root, JavaClasses classes) {
        Map<String, Set<String>> reached = new TreeMap<>();
        for (JavaClass from : classes) {
            if (packageUnder(root, from) != null) {
                Set<String> known = reached.computeIfAbsent(file(from), _ -> new TreeSet<>());
                for (JavaClass to : importsOf(from)) {
                    if (packageUnder(root, to) != null) {
                        known.add(file(to));
                    }
                }
            }
        }
        for (boolean grows = true; grows; ) {
            grows = false;
            for (Set<String> known : reached.values()) {
                for (String by : List.copyOf(known)) {
                    grows |= known.addAll(reached.getOrDefault(by, Set.of()));
                }
            }
        }
        return reached.entrySet().stream()
                .map(file -> file.getValue().stream()
                        .filter(other -> reached.getOrDefault(other, Set.of()).contains(file.getKey()))
                        .collect(Collectors.toCollection(TreeSet::new)))
                .filter(ring -> ring.size() > MAX_RING)
                .collect(Collectors.toSet());
    }

    /** The name of the class that a source file is named after. */
    private static String file(JavaClass type) {
        return type.getName().replaceFirst("\\$.*", "");
    }

    private static List<JavaClass> importsOf(JavaClass from) {
        return from.getDirectDependenciesFromSelf().stream()
                .map(dependency -> dependency.getTargetClass().getBaseComponentType())
                .filter(to -> !to.isPrimitive())
                .distinct()
                .toList();
    }

    /** The package below root, (door) for root itself; null outside of it. */
    private static @Nullable String packageUnder(String root, JavaClass type) {
        String name = type.getPackageName();
        if (name.equals(root)) {
            return "(door)";
        }
        return name.startsWith(root + ".") ? name.substring(root.length() + 1) : null;
    }

    private static String shortName(String root, JavaClass type) {
        return packageUnder(root, type) == null
                ? type.getName()
                : type.getName().substring(root.length() + 1);
    }

    /**
     * The imports of classes in the library's packages that break the rules, of all that were built with this one; and
     * those that are allowed and that nobody needs.
     */
    public static List<String> wrongImports(Class<?> one) {
        JavaClasses classes = classesBeside(one);
        List<String> wrong = new ArrayList<>(wrongImports(LIBRARY, classes));
        wrong.addAll(unusedImports(LIBRARY, classes));
        return wrong;
    }

    /** All that were built with it. */
    private static JavaClasses classesBeside(Class<?> one) {
        Path home = home(one);
        if (Files.isDirectory(home)) {
            return new ClassFileImporter().importPath(home);
        }
        try (JarFile jar = new JarFile(home.toFile())) {
            return new ClassFileImporter().importJar(jar);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    /** The folder or jar that a class is in. */
    static Path home(Class<?> one) {
        return Path.of(URI.create(
                one.getProtectionDomain().getCodeSource().getLocation().toString()));
    }
}
