package uk.ac.manchester.tornado.api.interpreter;

import java.lang.classfile.ClassBuilder;
import java.lang.classfile.ClassElement;
import java.lang.classfile.ClassFile;
import java.lang.classfile.ClassTransform;
import java.lang.classfile.CodeBuilder;
import java.lang.classfile.CodeElement;
import java.lang.classfile.CodeModel;
import java.lang.classfile.CodeTransform;
import java.lang.classfile.Label;
import java.lang.classfile.MethodModel;
import java.lang.classfile.MethodTransform;
import java.lang.classfile.Opcode;
import java.lang.classfile.TypeKind;
import java.lang.classfile.instruction.ArrayLoadInstruction;
import java.lang.classfile.instruction.ArrayStoreInstruction;
import java.lang.classfile.instruction.InvokeInstruction;
import java.lang.classfile.instruction.LabelTarget;
import java.lang.classfile.instruction.LocalVariable;
import java.lang.classfile.instruction.StoreInstruction;
import java.lang.classfile.instruction.TypeCheckInstruction;
import java.lang.constant.ClassDesc;
import java.lang.constant.ConstantDescs;
import java.lang.constant.MethodTypeDesc;
import java.lang.reflect.AccessFlag;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import uk.ac.manchester.tornado.api.KernelContext;

/**
 * Rewrites a class so that its array loads and stores go through another class's static methods, that local arrays
 * learn the name of the variable in which they are first stored, and on request that it is {@link Resumable}.
 */
final class Checks implements ClassTransform {
    private static final ClassDesc CONTEXT =
            KernelContext.class.describeConstable().orElseThrow();
    private static final ClassDesc WORK_ITEM =
            WorkItem.class.describeConstable().orElseThrow();
    private static final ClassDesc BYTES = ConstantDescs.CD_byte.arrayType();
    private static final Map<ClassDesc, ClassDesc> BOXES = Map.of(
            ConstantDescs.CD_boolean, ConstantDescs.CD_Boolean,
            ConstantDescs.CD_byte, ConstantDescs.CD_Byte,
            ConstantDescs.CD_char, ConstantDescs.CD_Character,
            ConstantDescs.CD_short, ConstantDescs.CD_Short,
            ConstantDescs.CD_int, ConstantDescs.CD_Integer,
            ConstantDescs.CD_long, ConstantDescs.CD_Long,
            ConstantDescs.CD_float, ConstantDescs.CD_Float,
            ConstantDescs.CD_double, ConstantDescs.CD_Double);
    private static final String ARRAYS = "uk.ac.manchester.tornado.api.types.arrays";

    private final ClassDesc memory;
    /** Whether the memory's methods have the work-item and the site as last parameters. */
    private final boolean takesItem;

    private final boolean resumable;
    /** The number of accesses so far, if the memory's methods take an access's number after the work-item. */
    private int sites;

    private final Set<String> provided = new HashSet<>();

    /**
     * @param memory the class whose static methods do the accesses
     * @param resumable whether methods with barriers return there
     */
    Checks(Class<?> memory, boolean resumable) {
        this.resumable = resumable;
        this.memory = memory.describeConstable().orElseThrow();
        this.takesItem = memory == ComparedMemory.class;
        for (var method : memory.getDeclaredMethods()) {
            provided.add(method.getName()
                    + MethodTypeDesc.of(
                                    method.getReturnType().describeConstable().orElseThrow(),
                                    Arrays.stream(method.getParameterTypes())
                                            .map(type ->
                                                    type.describeConstable().orElseThrow())
                                            .toList())
                            .descriptorString());
        }
    }

    /** The name of the method that calls a kernel's method with an array of its arguments. */
    static String spread(String method, String descriptor) {
        return method + descriptor.replace('/', '-').replace(';', '-').replace('[', '-');
    }

    @Override
    public void accept(ClassBuilder builder, ClassElement element) {
        if (element instanceof MethodModel method && method.code().isPresent()) {
            if (method.flags().has(AccessFlag.STATIC)
                    && method.methodTypeSymbol().parameterList().contains(CONTEXT)) {
                spread(builder, method);
            }
            Map<Integer, String> names = allocations(method.code().get());
            CodeTransform code = new Code(names, method.code().get());
            Resumable barriers = resumable ? Resumable.of(method) : null;
            builder.transformMethod(
                    method, MethodTransform.transformingCode(barriers == null ? code : barriers.andThen(code)));
        } else {
            builder.with(element);
        }
    }

    /** Faster than a method handle that spreads an array; a kernel is called for every work-item. */
    private static void spread(ClassBuilder builder, MethodModel method) {
        String name = method.methodName().stringValue();
        MethodTypeDesc type = method.methodTypeSymbol();
        builder.withMethodBody(
                spread(name, type.descriptorString()),
                MethodTypeDesc.of(ConstantDescs.CD_void, ConstantDescs.CD_Object.arrayType()),
                ClassFile.ACC_STATIC | ClassFile.ACC_SYNTHETIC,
                code -> {
                    for (int i = 0; i < type.parameterCount(); i++) {
                        code.aload(0).loadConstant(i).aaload();
                        ClassDesc parameter = type.parameterType(i);
                        if (parameter.isPrimitive()) {
                            ClassDesc box = BOXES.get(parameter);
                            code.checkcast(box)
                                    .invokevirtual(
                                            box, parameter.displayName() + "Value", MethodTypeDesc.of(parameter));
                        } else {
                            code.checkcast(parameter);
                        }
                    }
                    code.invokestatic(method.parent().orElseThrow().thisClass().asSymbol(), name, type);
                    TypeKind result = TypeKind.from(type.returnType());
                    if (result.slotSize() == 1) {
                        code.pop();
                    } else if (result.slotSize() == 2) {
                        code.pop2();
                    }
                    code.return_();
                });
    }

    /** For each allocation of local memory, by its number in the method, the variable in which it is stored. */
    private static Map<Integer, String> allocations(CodeModel code) {
        Map<Label, Map<Integer, String>> variables = new HashMap<>();
        List<CodeElement> elements = code.elementList();
        for (CodeElement element : elements) {
            if (element instanceof LocalVariable variable) {
                variables
                        .computeIfAbsent(variable.startScope(), label -> new HashMap<>())
                        .put(variable.slot(), variable.name().stringValue());
            }
        }
        Map<Integer, String> names = new HashMap<>();
        int number = 0;
        int stored = -1;
        CodeElement before = null;
        for (CodeElement element : elements) {
            boolean isNew = before instanceof InvokeInstruction call && isAllocation(call);
            if (isNew) {
                number++;
                stored = element instanceof StoreInstruction store ? store.slot() : -1;
            } else if (element instanceof LabelTarget target && stored >= 0) {
                String name = variables.getOrDefault(target.label(), Map.of()).get(stored);
                if (name != null) {
                    names.put(number, name);
                    stored = -1;
                }
            }
            before = element;
        }
        return names;
    }

    private static boolean isAllocation(InvokeInstruction call) {
        return call.owner().asSymbol().equals(CONTEXT)
                && call.name().stringValue().startsWith("allocate");
    }

    private final class Code implements CodeTransform {
        private final Map<Integer, String> names;
        private final boolean accesses;
        private int number;
        private int item;

        Code(Map<Integer, String> names, CodeModel code) {
            this.names = names;
            accesses = code.elementStream()
                    .anyMatch(element -> element instanceof ArrayLoadInstruction
                            || element instanceof ArrayStoreInstruction
                            || (element instanceof InvokeInstruction call && isElement(call)));
        }

        @Override
        public void atStart(CodeBuilder builder) {
            if (takesItem && accesses) {
                item = builder.allocateLocal(TypeKind.REFERENCE);
                builder.invokestatic(WORK_ITEM, "current", MethodTypeDesc.of(WORK_ITEM))
                        .astore(item);
            }
        }

        private void access(CodeBuilder builder, String name, MethodTypeDesc type) {
            if (takesItem) {
                builder.aload(item).loadConstant(sites++);
            }
            builder.invokestatic(memory, name, withItem(type));
        }

        @Override
        public void accept(CodeBuilder builder, CodeElement element) {
            switch (element) {
                case ArrayLoadInstruction load
                when load.typeKind() != TypeKind.REFERENCE ->
                    access(
                            builder,
                            "load",
                            MethodTypeDesc.of(value(load.typeKind()), array(load.typeKind()), ConstantDescs.CD_int));
                case ArrayStoreInstruction store
                when store.typeKind() != TypeKind.REFERENCE ->
                    access(
                            builder,
                            "store",
                            MethodTypeDesc.of(
                                    ConstantDescs.CD_void,
                                    array(store.typeKind()),
                                    ConstantDescs.CD_int,
                                    value(store.typeKind())));
                case InvokeInstruction call
                when isAllocation(call) -> {
                    builder.with(call);
                    String name = names.get(++number);
                    if (name != null) {
                        builder.dup()
                                .loadConstant(name)
                                .invokestatic(
                                        memory,
                                        "name",
                                        MethodTypeDesc.of(
                                                ConstantDescs.CD_void,
                                                ConstantDescs.CD_Object,
                                                ConstantDescs.CD_String));
                    }
                }
                case InvokeInstruction call
                when isElement(call) -> access(builder, call.name().stringValue(), withReceiver(call));
                case TypeCheckInstruction check
                when check.opcode() == Opcode.CHECKCAST
                        && check.type().asSymbol().equals(BYTES) ->
                    builder.invokestatic(memory, "bytes", MethodTypeDesc.of(BYTES, ConstantDescs.CD_Object));
                default -> builder.with(element);
            }
        }

        /** Whether a call is a native array's get or set that the memory observes. */
        private boolean isElement(InvokeInstruction call) {
            return call.owner().asSymbol().packageName().equals(ARRAYS)
                    && call.opcode() == Opcode.INVOKEVIRTUAL
                    && provided.contains(call.name().stringValue()
                            + withItem(withReceiver(call)).descriptorString());
        }

        private MethodTypeDesc withItem(MethodTypeDesc type) {
            return takesItem ? type.insertParameterTypes(type.parameterCount(), WORK_ITEM, ConstantDescs.CD_int) : type;
        }

        private static MethodTypeDesc withReceiver(InvokeInstruction call) {
            return call.typeSymbol().insertParameterTypes(0, call.owner().asSymbol());
        }

        private static ClassDesc value(TypeKind kind) {
            return kind == TypeKind.BOOLEAN ? ConstantDescs.CD_byte : kind.upperBound();
        }

        /** Bytes and booleans use the same instructions. */
        private static ClassDesc array(TypeKind kind) {
            return kind == TypeKind.BYTE || kind == TypeKind.BOOLEAN
                    ? ConstantDescs.CD_Object
                    : kind.upperBound().arrayType();
        }
    }
}
