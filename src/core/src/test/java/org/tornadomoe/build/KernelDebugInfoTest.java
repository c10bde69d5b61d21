package org.tornadomoe.build;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.lang.classfile.Attributes;
import java.lang.classfile.ClassFile;
import java.lang.classfile.ClassModel;
import java.lang.classfile.MethodModel;
import java.lang.classfile.attribute.CodeAttribute;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.stream.Stream;
import javax.tools.ToolProvider;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.tornadomoe.MoeLayer;

/** TornadoVM compiles a kernel by its local variable table, which javac writes with {@code -g} only. */
class KernelDebugInfoTest {
    @Test
    void everyKernelHasItsLocalVariableTable() throws IOException {
        assertThat(methodsWithoutTable(
                        ImportDirectionTest.home(MoeLayer.class).resolve("org/tornadomoe/tornado/kernels")))
                .isEmpty();
    }

    @Test
    void kernelCompiledWithoutDebugInfoIsFound(@TempDir Path directory) throws IOException {
        Path source = directory.resolve("Bare.java");
        Files.writeString(source, "class Bare { static void twice(int[] a) { a[0] *= 2; } }");
        int status = ToolProvider.getSystemJavaCompiler().run(null, null, null, "-g:none", source.toString());
        assertThat(status).isZero();
        assertThat(methodsWithoutTable(directory)).contains("Bare.twice");
    }

    private static List<String> methodsWithoutTable(Path directory) throws IOException {
        List<String> without = new ArrayList<>();
        try (Stream<Path> files = Files.walk(directory)) {
            for (Path file : files.filter(f -> f.toString().endsWith(".class")).toList()) {
                ClassModel type = ClassFile.of().parse(file);
                for (MethodModel method : type.methods()) {
                    Optional<CodeAttribute> code = method.findAttribute(Attributes.code());
                    if (code.isPresent()
                            && code.get().maxLocals() > 0
                            && code.get()
                                    .findAttribute(Attributes.localVariableTable())
                                    .isEmpty()) {
                        without.add(type.thisClass().asInternalName() + "." + method.methodName());
                    }
                }
            }
        }
        return without;
    }
}
