package org.tornadomoe.interpreter;

import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.lang.classfile.ClassFile;
import java.lang.classfile.ClassModel;
import java.lang.classfile.constantpool.ClassEntry;
import java.lang.classfile.constantpool.FieldRefEntry;
import java.lang.classfile.constantpool.MemberRefEntry;
import java.lang.classfile.constantpool.PoolEntry;
import java.net.URISyntaxException;
import java.nio.file.FileSystem;
import java.nio.file.FileSystems;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;

/**
 * What classes refer to of TornadoVM's API, {@code class NAME}, {@code field OWNER.NAME DESCRIPTOR} or {@code method
 * OWNER.NAME DESCRIPTOR}, and the two records of what its versions have.
 */
final class ApiSignatures {
    /** All that the API of 5.2.0-jdk25 has, in {@link TornadoApiSignatureTest}'s form. */
    static final Path OLDER = Path.of("src/core/src/test/resources/tornado-api-5.2.0-jdk25.signatures");

    /** What is used and known of later versions, in the form of references. */
    static final Path NEWER = Path.of("src/core/src/test/resources/tornado-api-6-to-8.signatures");

    private static final String API = "uk/ac/manchester/tornado/";

    private ApiSignatures() {}

    /** The class files that come from where that class does, below a folder of theirs. */
    static List<ClassModel> classesBeside(Class<?> one, String folder) throws IOException {
        Path home;
        try {
            home = Path.of(
                    one.getProtectionDomain().getCodeSource().getLocation().toURI());
        } catch (URISyntaxException e) {
            throw new IOException(e);
        }
        if (Files.isDirectory(home)) {
            return classesIn(home.resolve(folder));
        }
        try (FileSystem jar = FileSystems.newFileSystem(home)) {
            return classesIn(jar.getPath(folder));
        }
    }

    private static List<ClassModel> classesIn(Path folder) throws IOException {
        try (Stream<Path> files = Files.walk(folder)) {
            List<ClassModel> classes = new ArrayList<>();
            for (Path file : files.filter(f -> f.toString().endsWith(".class")).toList()) {
                classes.add(ClassFile.of().parse(Files.readAllBytes(file)));
            }
            return classes;
        }
    }

    static ClassModel parse(Class<?> type) {
        try (InputStream in = type.getResourceAsStream("/" + type.getName().replace('.', '/') + ".class")) {
            return ClassFile.of().parse(in.readAllBytes());
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    /** Of TornadoVM's API; of an array of a class, the class. */
    static Set<String> references(Iterable<ClassModel> classes) {
        Set<String> references = new TreeSet<>();
        for (ClassModel type : classes) {
            for (PoolEntry entry : type.constantPool()) {
                if (entry instanceof MemberRefEntry member
                        && member.owner().asInternalName().startsWith(API)) {
                    references.add((entry instanceof FieldRefEntry ? "field " : "method ")
                            + member.owner().asInternalName() + "."
                            + member.name().stringValue() + " "
                            + member.type().stringValue());
                } else if (entry instanceof ClassEntry named) {
                    String name = named.asInternalName().replaceAll("^\\[+L(.*);$", "$1");
                    if (name.startsWith(API)) {
                        references.add("class " + name);
                    }
                }
            }
        }
        return references;
    }

    /** The references that the record of 5.2.0-jdk25 has not. */
    static Set<String> missingFromOlder(Set<String> references) throws IOException {
        return missing(Files.readAllLines(OLDER), references);
    }

    /**
     * The references that aren't in a class or what it inherits from.
     *
     * @param signatures in {@link TornadoApiSignatureTest}'s form
     */
    static Set<String> missing(Iterable<String> signatures, Set<String> references) {
        Map<String, List<String>> parents = new HashMap<>();
        Set<String> members = new HashSet<>();
        for (String line : signatures) {
            String[] words = line.split(" ", -1);
            switch (words[0]) {
                case "class" ->
                    parents.computeIfAbsent(words[1], _ -> new ArrayList<>()).add(words[words.length - 1]);
                case "interface" ->
                    parents.computeIfAbsent(words[1], _ -> new ArrayList<>()).add(words[3]);
                case "field" -> members.add(words[0] + " " + words[1] + " " + words[2]);
                default -> {
                    int descriptor = words[1].indexOf('(');
                    members.add(
                            words[0] + " " + words[1].substring(0, descriptor) + " " + words[1].substring(descriptor));
                }
            }
        }
        Set<String> missing = new TreeSet<>();
        for (String reference : references) {
            String[] words = reference.split(" ", -1);
            boolean there;
            if (words[0].equals("class")) {
                there = parents.containsKey(words[1]);
            } else {
                int dot = words[1].lastIndexOf('.');
                there = inherits(
                        words[1].substring(0, dot),
                        words[0],
                        words[1].substring(dot + 1) + " " + words[2],
                        parents,
                        members);
            }
            if (!there) {
                missing.add(reference);
            }
        }
        return missing;
    }

    private static boolean inherits(
            String owner, String kind, String member, Map<String, List<String>> parents, Set<String> members) {
        if (members.contains(kind + " " + owner + "." + member)) {
            return true;
        }
        if (owner.startsWith("java/")) {
            return Stream.of(typeOf(owner).getMethods()).anyMatch(method -> member.startsWith(method.getName() + " ("));
        }
        return parents.getOrDefault(owner, List.of()).stream()
                .anyMatch(parent -> inherits(parent, kind, member, parents, members));
    }

    private static Class<?> typeOf(String name) {
        try {
            return Class.forName(name.replace('/', '.'));
        } catch (ClassNotFoundException e) {
            throw new IllegalArgumentException(name, e);
        }
    }

    /** The record of later versions. */
    static Newer newer() throws IOException {
        Map<String, List<String>> lines = new LinkedHashMap<>();
        Set<String> added = new TreeSet<>();
        Map<String, String> sources = new LinkedHashMap<>();
        List<String> backends = List.of();
        for (String line : Files.readAllLines(NEWER)) {
            if (line.startsWith("# source ")) {
                String[] source = line.substring("# source ".length()).split(" ", 2);
                sources.put(source[0], source[1]);
            } else if (line.startsWith("backends ")) {
                backends = List.of(line.substring("backends ".length()).split(" "));
            } else if (!line.startsWith("#")) {
                String[] halves = line.split(" {2}", 2);
                String reference = halves[0].startsWith("new ") ? halves[0].substring(4) : halves[0];
                lines.put(reference, halves.length < 2 ? List.of() : List.of(halves[1].split(" ")));
                if (halves[0].startsWith("new ")) {
                    added.add(reference);
                }
            }
        }
        return new Newer(lines, added, sources, backends);
    }

    /**
     * @param lines references, each with its sources
     * @param added those that 5.2 lacks
     * @param sources what each source is
     * @param backends names of the backends
     */
    record Newer(
            Map<String, List<String>> lines, Set<String> added, Map<String, String> sources, List<String> backends) {
        /** The references that it has not. */
        Set<String> missing(Set<String> references) {
            Set<String> missing = new TreeSet<>(references);
            missing.removeAll(lines.keySet());
            return missing;
        }

        @Nullable
        String sourceThatIsNone() {
            return lines.values().stream()
                    .flatMap(List::stream)
                    .filter(source -> !sources.containsKey(source))
                    .findFirst()
                    .orElse(null);
        }
    }
}
