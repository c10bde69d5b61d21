package uk.ac.manchester.tornado.api.interpreter;

import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.lang.classfile.ClassFile;
import java.lang.classfile.ClassHierarchyResolver;
import java.lang.classfile.ClassModel;
import java.lang.classfile.CodeElement;
import java.lang.classfile.CodeModel;
import java.lang.classfile.MethodModel;
import java.lang.classfile.Opcode;
import java.lang.classfile.TypeKind;
import java.lang.classfile.instruction.InvokeDynamicInstruction;
import java.lang.classfile.instruction.InvokeInstruction;
import java.lang.classfile.instruction.LineNumber;
import java.lang.classfile.instruction.LocalVariable;
import java.lang.constant.ClassDesc;
import java.lang.invoke.MethodHandle;
import java.lang.invoke.MethodHandles;
import java.lang.reflect.AccessFlag;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import uk.ac.manchester.tornado.api.KernelContext;

/**
 * The classes of a kernel: read to analyse it, and loaded a second time with checked memory accesses. The second load
 * includes the kernel's whole package, so that its classes can access each other.
 */
final class KernelClasses {
    private static final String CONTEXT = KernelContext.class.getName().replace('.', '/');

    private static final ClassValue<KernelClasses> ALL = new ClassValue<>() {
        @Override
        protected KernelClasses computeValue(Class<?> owner) {
            return new KernelClasses(owner);
        }
    };

    private final Class<?> owner;
    private final Map<String, ClassModel> models = Collections.synchronizedMap(new HashMap<>());
    /** Indexed by whether accesses are compared, and by whether methods with barriers are resumable. */
    private final Loader[][] loaders = new Loader[2][2];

    private KernelClasses(Class<?> owner) {
        this.owner = owner;
    }

    /**
     * One of the class's methods. It waits if it, or a method that it calls, can reach a barrier or a warp operation.
     * It is resumable if these are only barriers in the method itself; its copy then returns there, as {@link
     * Resumable} describes.
     */
    record Method(
            KernelClasses classes,
            String name,
            String method,
            String descriptor,
            List<String> parameters,
            boolean waits,
            boolean resumable,
            boolean sharesMemory) {
        /**
         * The checked copy, called with an array of arguments. With {@code races}, accesses to the same element are
         * compared.
         */
        MethodHandle checked(boolean races) {
            return classes.checked(method, descriptor, races, resumable);
        }
    }

    /**
     * The method of a stack frame; null if its class can't be read or it is not a static method for these arguments.
     */
    static Method find(StackTraceElement frame, Task task) {
        Class<?> owner;
        try {
            owner = Class.forName(
                    frame.getClassName(), false, task.code().getClass().getClassLoader());
        } catch (ClassNotFoundException | LinkageError e) {
            return null;
        }
        KernelClasses classes = ALL.get(owner);
        ClassModel model = classes.model(owner.getName().replace('.', '/'));
        if (model == null) {
            return null;
        }
        MethodModel found = null;
        for (MethodModel method : model.methods()) {
            if (method.methodName().equalsString(frame.getMethodName())
                    && method.flags().has(AccessFlag.STATIC)
                    && method.methodTypeSymbol().parameterCount() == task.arguments().length
                    && (found == null || hasLine(method, frame.getLineNumber()))) {
                found = method;
            }
        }
        return found == null ? null : classes.describe(found);
    }

    private static boolean hasLine(MethodModel method, int line) {
        return method.code().stream()
                .flatMap(CodeModel::elementStream)
                .anyMatch(element -> element instanceof LineNumber number && number.line() == line);
    }

    private Method describe(MethodModel method) {
        Reach reach = new Reach();
        reach.follow(method);
        return new Method(
                this,
                owner.getSimpleName() + "." + method.methodName().stringValue(),
                method.methodName().stringValue(),
                method.methodType().stringValue(),
                parameters(method),
                reach.waits,
                !reach.waitsElsewhere && Resumable.of(method) != null,
                reach.sharesMemory);
    }

    private static List<String> parameters(MethodModel method) {
        Map<Integer, String> variables = new HashMap<>();
        for (CodeElement element : method.code().orElseThrow()) {
            if (element instanceof LocalVariable variable) {
                variables.putIfAbsent(variable.slot(), variable.name().stringValue());
            }
        }
        List<String> names = new ArrayList<>();
        int slot = 0;
        for (ClassDesc type : method.methodTypeSymbol().parameterList()) {
            names.add(variables.getOrDefault(slot, "argument " + (names.size() + 1)));
            slot += TypeKind.from(type).slotSize();
        }
        return List.copyOf(names);
    }

    /** Analyses a method and the static methods that it calls. */
    private final class Reach {
        private final Set<String> seen = new HashSet<>();
        private final ArrayDeque<MethodModel> open = new ArrayDeque<>();
        private boolean waits;
        /** Whether it waits other than at barriers of the method itself. */
        private boolean waitsElsewhere;

        private boolean sharesMemory;

        void follow(MethodModel start) {
            start.code().ifPresent(code -> code.elementStream().forEach(element -> look(element, true)));
            while (!open.isEmpty()) {
                open.remove().code().ifPresent(code -> code.elementStream().forEach(element -> look(element, false)));
            }
        }

        private void look(CodeElement element, boolean own) {
            if (Resumable.isBarrier(element)) {
                waits = true;
                waitsElsewhere |= !own;
                return;
            }
            if (element instanceof InvokeDynamicInstruction dynamic
                    && dynamic.typeSymbol().descriptorString().contains(CONTEXT)) {
                waitsElsewhere();
            }
            if (!(element instanceof InvokeInstruction call)) {
                return;
            }
            String target = call.owner().asInternalName();
            String name = call.name().stringValue();
            if (target.equals(CONTEXT)) {
                if (name.startsWith("simd") || name.startsWith("mma")) {
                    waitsElsewhere();
                }
                sharesMemory |= name.startsWith("allocate");
                return;
            }
            if (!seen.add(target + "." + name + call.type().stringValue())) {
                return;
            }
            MethodModel callee = call.opcode() == Opcode.INVOKESTATIC ? method(target, name, call) : null;
            if (callee != null) {
                open.add(callee);
            } else if (call.type().stringValue().contains(CONTEXT)) {
                waitsElsewhere();
            }
        }

        private void waitsElsewhere() {
            waits = true;
            waitsElsewhere = true;
        }

        private MethodModel method(String target, String name, InvokeInstruction call) {
            ClassModel model = target.startsWith("java/") ? null : model(target);
            if (model == null) {
                return null;
            }
            for (MethodModel method : model.methods()) {
                if (method.methodName().equalsString(name)
                        && method.methodType().equalsString(call.type().stringValue())) {
                    return method;
                }
            }
            return null;
        }
    }

    /** A class of the kernel's loader; null if its bytes aren't available. */
    private ClassModel model(String internalName) {
        return models.computeIfAbsent(internalName, name -> {
            ClassLoader loader = owner.getClassLoader();
            if (loader == null) {
                return null;
            }
            try (InputStream in = loader.getResourceAsStream(name + ".class")) {
                return in == null ? null : ClassFile.of().parse(in.readAllBytes());
            } catch (IOException e) {
                throw new UncheckedIOException(e);
            } catch (IllegalArgumentException e) {
                return null; // a class file this JDK does not know
            }
        });
    }

    private MethodHandle checked(String method, String descriptor, boolean races, boolean resumable) {
        Loader loader;
        synchronized (loaders) {
            Loader[] by = loaders[races ? 1 : 0];
            int which = resumable ? 1 : 0;
            if (by[which] == null) {
                by[which] = new Loader(owner.getClassLoader(), races, resumable);
            }
            loader = by[which];
        }
        return loader.handles.computeIfAbsent(Checks.spread(method, descriptor), loader::handle);
    }

    private final class Loader extends ClassLoader {
        private final Class<?> memory;
        private final boolean resumable;
        /**
         * By the method's name in the copy. One handle each, because the JVM compiles a frequently called handle
         * separately.
         */
        private final Map<String, MethodHandle> handles = new ConcurrentHashMap<>();

        Loader(ClassLoader parent, boolean races, boolean resumable) {
            super(parent);
            this.memory = races ? ComparedMemory.class : CheckedMemory.class;
            this.resumable = resumable;
        }

        @Override
        protected Class<?> loadClass(String name, boolean resolve) throws ClassNotFoundException {
            synchronized (getClassLoadingLock(name)) {
                Class<?> loaded = findLoadedClass(name);
                if (loaded == null && isKernels(name)) {
                    ClassModel model = model(name.replace('.', '/'));
                    if (model != null) {
                        byte[] bytes = instrumented(model);
                        loaded = defineClass(name, bytes, 0, bytes.length, owner.getProtectionDomain());
                    }
                }
                return loaded == null ? super.loadClass(name, resolve) : loaded;
            }
        }

        MethodHandle handle(String method) {
            try {
                var found = loadClass(owner.getName()).getDeclaredMethod(method, Object[].class);
                found.setAccessible(true);
                return MethodHandles.lookup().unreflect(found);
            } catch (ReflectiveOperationException e) {
                throw new IllegalStateException("the checked copy of " + owner.getName() + " has no " + method, e);
            }
        }

        private boolean isKernels(String name) {
            String home = owner.getPackageName();
            return name.lastIndexOf('.') == (home.isEmpty() ? -1 : home.length()) && name.startsWith(home);
        }

        private byte[] instrumented(ClassModel model) {
            ClassHierarchyResolver hierarchy = ClassHierarchyResolver.ofResourceParsing(getParent())
                    .orElse(ClassHierarchyResolver.defaultResolver());
            return ClassFile.of(ClassFile.ClassHierarchyResolverOption.of(hierarchy))
                    .transformClass(model, new Checks(memory, resumable));
        }
    }
}
