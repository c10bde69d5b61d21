package org.tornadomoe.interpreter;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.io.InputStream;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.lang.classfile.ClassFile;
import java.lang.classfile.ClassModel;
import java.lang.classfile.ClassTransform;
import java.lang.classfile.CodeBuilder;
import java.lang.classfile.FieldModel;
import java.lang.classfile.MethodModel;
import java.lang.classfile.MethodTransform;
import java.lang.classfile.constantpool.Utf8Entry;
import java.lang.classfile.instruction.FieldInstruction;
import java.lang.constant.ClassDesc;
import java.lang.reflect.AccessFlag;
import java.lang.reflect.Method;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.TreeSet;
import javax.tools.JavaCompiler;
import javax.tools.SimpleJavaFileObject;
import javax.tools.ToolProvider;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;
import uk.ac.manchester.tornado.api.enums.TornadoVMBackendType;
import uk.ac.manchester.tornado.api.runtime.TornadoRuntimeProvider;

/**
 * The library on the interpreter with no more of the API than is known of TornadoVM 6 to 8: without PTX and SPIRV among
 * the backends, and without any member that isn't in {@link ApiSignatures#NEWER}.
 */
@Timeout(120)
class NewerTornadoVmTest {
    private static final String BACKENDS = TornadoVMBackendType.class.getName();
    private static final String OURS_ALONE = "uk/ac/manchester/tornado/api/interpreter/";

    private static final String GOLDEN = "src/test/resources/golden/hf/mixtral";

    @TempDir
    private static Path temporary;

    /** For all tests, so that it is compiled once. */
    private static final Later later = new Later("JAVA");

    private static ApiSignatures.Newer newer = new ApiSignatures.Newer(Map.of(), Set.of(), Map.of(), List.of());
    private static Set<String> kept = Set.of();

    @BeforeAll
    static void record() throws IOException {
        newer = ApiSignatures.newer();
        List<ClassModel> interpreter = ApiSignatures.classesBeside(TornadoRuntimeProvider.class, "uk");
        kept = new TreeSet<>();
        // Whosever it is: a class overrides what its interface has. And what the interpreter needs itself.
        for (Set<String> references : List.of(newer.lines().keySet(), ApiSignatures.references(interpreter))) {
            references.stream()
                    .map(reference -> reference.split(" "))
                    .filter(words -> words.length == 3)
                    .forEach(words -> kept.add(
                            words[0] + " " + words[1].substring(words[1].lastIndexOf('.') + 1) + " " + words[2]));
        }
        String source = "package %s; public enum %s { %s }"
                .formatted(
                        TornadoVMBackendType.class.getPackageName(),
                        TornadoVMBackendType.class.getSimpleName(),
                        String.join(", ", newer.backends()));
        JavaCompiler compiler = ToolProvider.getSystemJavaCompiler();
        assertThat(compiler.getTask(
                                null,
                                null,
                                null,
                                List.of("-d", temporary.toString(), "-proc:none", "-nowarn", "-Xlint:none"),
                                null,
                                List.of(
                                        new SimpleJavaFileObject(
                                                URI.create("string:///TornadoVMBackendType.java"),
                                                SimpleJavaFileObject.Kind.SOURCE) {
                                            @Override
                                            public CharSequence getCharContent(boolean ignoreEncodingErrors) {
                                                return source;
                                            }
                                        }))
                        .call())
                .isTrue();
    }

    private static String member(String kind, Utf8Entry name, Utf8Entry type) {
        return kind + " " + name.stringValue() + " " + type.stringValue();
    }

    /** Has the library and the interpreter once more, the latter as a later version would be. */
    private static final class Later extends ClassLoader {
        private final String backend;

        /** @param backend what the interpreter says that its own is */
        Later(String backend) {
            super(NewerTornadoVmTest.class.getClassLoader());
            this.backend = backend;
        }

        @Override
        protected Class<?> loadClass(String name, boolean resolve) throws ClassNotFoundException {
            boolean ours = name.startsWith("org.tornadomoe.") || name.startsWith("uk.ac.manchester.");
            synchronized (getClassLoadingLock(name)) {
                Class<?> loaded = findLoadedClass(name);
                return loaded != null ? loaded : ours ? findClass(name) : super.loadClass(name, resolve);
            }
        }

        @Override
        protected Class<?> findClass(String name) throws ClassNotFoundException {
            String file = name.replace('.', '/') + ".class";
            try (InputStream in = name.equals(BACKENDS)
                    ? Files.newInputStream(temporary.resolve(file))
                    : getParent().getResourceAsStream(file)) {
                if (in == null) {
                    throw new ClassNotFoundException(name);
                }
                byte[] bytes = in.readAllBytes();
                if (name.startsWith("uk.") && !name.equals(BACKENDS)) {
                    ClassModel type = ClassFile.of().parse(bytes);
                    bytes = ClassFile.of().transformClass(type, asLater(type));
                }
                return defineClass(name, bytes, 0, bytes.length);
            } catch (IOException e) {
                throw new ClassNotFoundException(name, e);
            }
        }

        private ClassTransform asLater(ClassModel type) {
            String owner = type.thisClass().asInternalName();
            if (!owner.startsWith(OURS_ALONE)) {
                return ClassTransform.dropping(element -> switch (element) {
                    case MethodModel method ->
                        method.flags().has(AccessFlag.PUBLIC)
                                && !kept.contains(member("method", method.methodName(), method.methodType()));
                    case FieldModel field ->
                        field.flags().has(AccessFlag.PUBLIC)
                                && !kept.contains(member("field", field.fieldName(), field.fieldType()));
                    default -> false;
                });
            }
            ClassDesc backends = ClassDesc.of(BACKENDS);
            return (builder, element) -> {
                if (element instanceof MethodModel method && method.methodName().equalsString("markReset")) {
                    // A plan that is closed marks none but itself as reset.
                    builder.withMethodBody(
                            method.methodName(),
                            method.methodType(),
                            method.flags().flagsMask(),
                            CodeBuilder::return_);
                } else if (element instanceof MethodModel method) {
                    builder.transformMethod(method, MethodTransform.transformingCode((code, instruction) -> {
                        if (instruction instanceof FieldInstruction field
                                && field.owner().asSymbol().equals(backends)
                                && field.name().equalsString("JAVA")) {
                            code.getstatic(backends, backend, backends);
                        } else {
                            code.with(instruction);
                        }
                    }));
                } else {
                    builder.with(element);
                }
            };
        }

        /** What a command prints, with both streams in one. */
        String moe(int status, String... arguments) throws Exception {
            StringWriter text = new StringWriter();
            PrintWriter out = new PrintWriter(text);
            Method run = loadClass("org.tornadomoe.cli.Moe")
                    .getDeclaredMethod("run", PrintWriter.class, PrintWriter.class, Map.class, String[].class);
            run.setAccessible(true);
            Thread thread = Thread.currentThread();
            ClassLoader before = thread.getContextClassLoader();
            thread.setContextClassLoader(this);
            try {
                assertThat(run.invoke(null, out, out, Map.of(), arguments))
                        .as(text.toString())
                        .isEqualTo(status);
            } finally {
                thread.setContextClassLoader(before);
            }
            return text.toString();
        }

        /** Calls a test's method without arguments of its own. */
        void test(String name, String method, Object... arguments) throws Exception {
            Class<?> type = loadClass(name);
            for (Method candidate : type.getDeclaredMethods()) {
                if (candidate.getName().equals(method) && candidate.getParameterCount() == arguments.length) {
                    candidate.setAccessible(true);
                    var constructor = type.getDeclaredConstructor();
                    constructor.setAccessible(true);
                    candidate.invoke(constructor.newInstance(), arguments);
                    return;
                }
            }
            throw new NoSuchMethodException(name + "." + method);
        }
    }

    @Test
    void whatItHasLostIsGone() throws Exception {
        Class<?> backends = later.loadClass(BACKENDS);
        assertThat(backends.getEnumConstants()).extracting(Objects::toString).doesNotContain("PTX", "SPIRV");
        assertThat(later.loadClass("uk.ac.manchester.tornado.api.TornadoDeviceContext")
                        .getMethods())
                .extracting(Method::getName)
                .contains("getDeviceIndex")
                .doesNotContain("setResetToFalse");
    }

    @Test
    void commandsRun() throws Exception {
        assertThat(later.moe(0, "devices")).contains("interpreter:0").contains("TornadoPortableExperts");
        assertThat(later.moe(0, "explain", "--checkpoint", GOLDEN, "--backend", "triton"))
                .containsPattern("Tornado(Portable|Dp4a)Experts +triton +interpreter:0 +TAKEN");
    }

    @Test
    void layersRunAndOutliveOthersPlans() throws Exception {
        later.test("org.tornadomoe.tornado.InterpreterLayerTest", "portableStages", 5, 2, 37, 19, 7);
        later.test("org.tornadomoe.tornado.InterpreterLayerTest", "stagesWithDp4a", 5, 2, 37, 19, 7);
        later.test("org.tornadomoe.tornado.MoeTasksTest", "layersOutliveAModelsPlan");
    }

    /**
     * One that nobody has met is offered to the kernels that run on any; whether a layer comes out right is found out
     * when it is loaded.
     */
    @Test
    void aBackendThatNobodyHasMetServes() throws Exception {
        String property = "tornado.recover.bailout";
        String before = System.getProperty(property);
        System.setProperty(property, "False");
        try {
            Later metal = new Later("METAL");
            String explained = metal.moe(0, "explain", "--checkpoint", GOLDEN, "--backend", "triton");
            assertThat(explained.replaceAll("\\s+", " "))
                    .contains("METAL is a backend that no layer was ever tried on")
                    .contains("metal:0")
                    .contains("these kernels are written for OpenCL's compilers and untried with others")
                    .contains("there are kernels for CUDA and PTX only")
                    .containsPattern("Tornado(Portable|Dp4a)Experts +triton +metal:0 +TAKEN");
            assertThat(metal.moe(
                            0, "verify", GOLDEN, "--golden", GOLDEN + "/golden.safetensors", "--backend", "triton"))
                    .contains("passed");
        } finally {
            if (before == null) {
                System.clearProperty(property);
            } else {
                System.setProperty(property, before);
            }
        }
    }
}
