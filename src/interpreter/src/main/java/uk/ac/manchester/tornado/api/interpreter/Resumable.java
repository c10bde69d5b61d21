package uk.ac.manchester.tornado.api.interpreter;

import java.lang.classfile.CodeBuilder;
import java.lang.classfile.CodeElement;
import java.lang.classfile.CodeModel;
import java.lang.classfile.CodeTransform;
import java.lang.classfile.Label;
import java.lang.classfile.MethodModel;
import java.lang.classfile.TypeKind;
import java.lang.classfile.instruction.BranchInstruction;
import java.lang.classfile.instruction.IncrementInstruction;
import java.lang.classfile.instruction.InvokeInstruction;
import java.lang.classfile.instruction.LabelTarget;
import java.lang.classfile.instruction.LoadInstruction;
import java.lang.classfile.instruction.LocalVariable;
import java.lang.classfile.instruction.LookupSwitchInstruction;
import java.lang.classfile.instruction.StoreInstruction;
import java.lang.classfile.instruction.SwitchCase;
import java.lang.classfile.instruction.TableSwitchInstruction;
import java.lang.constant.ClassDesc;
import java.lang.constant.ConstantDescs;
import java.lang.constant.MethodTypeDesc;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Stream;
import uk.ac.manchester.tornado.api.KernelContext;

/**
 * Rewrites a kernel's method so that it returns at a barrier, keeps its variables in the work-item's {@link Frame}, and
 * continues from there when it is called again with the same arguments. A group's work-items then need no threads.
 */
final class Resumable implements CodeTransform {
    private static final ClassDesc FRAME = Frame.class.describeConstable().orElseThrow();
    private static final String CONTEXT = KernelContext.class.getName().replace('.', '/');

    /** A local variable, and the range of the method's elements in which it has a value. */
    private record Variable(int slot, ClassDesc type, int from, int to) {
        boolean holdsAt(int position) {
            return from < position && position < to;
        }

        TypeKind kind() {
            return TypeKind.from(type).asLoadable();
        }
    }

    /** The variables to keep at each barrier: those that are read after it. */
    private final List<List<Variable>> kept;

    private final List<Label> after = new ArrayList<>();
    private int frame;

    private Resumable(List<List<Variable>> kept) {
        this.kept = kept;
    }

    static boolean isBarrier(CodeElement element) {
        return element instanceof InvokeInstruction call
                && call.owner().asInternalName().equals(CONTEXT)
                && call.name().stringValue().endsWith("Barrier");
    }

    /** Null if the method has no barrier, or its variable table is incomplete. */
    static Resumable of(MethodModel method) {
        CodeModel code = method.code().orElse(null);
        if (code == null
                || !code.exceptionHandlers().isEmpty()
                || !method.methodTypeSymbol().returnType().equals(ConstantDescs.CD_void)) {
            return null;
        }
        List<CodeElement> elements = code.elementList();
        Map<Label, Integer> positions = positions(elements);
        List<Variable> variables = variables(elements, positions);
        int parameters = method.methodTypeSymbol().parameterList().stream()
                .mapToInt(type -> TypeKind.from(type).slotSize())
                .sum();
        Set<Integer> changed = new HashSet<>();
        Map<Integer, List<Integer>> reads = new HashMap<>();
        List<Integer> barriers = new ArrayList<>();
        for (int i = 0; i < elements.size(); i++) {
            int position = i;
            int read = -1;
            switch (elements.get(i)) {
                case LoadInstruction load -> read = load.slot();
                case StoreInstruction store -> changed.add(store.slot());
                case IncrementInstruction increment -> {
                    read = increment.slot();
                    changed.add(read);
                }
                default -> {
                    if (isBarrier(elements.get(i))) {
                        barriers.add(i);
                    }
                }
            }
            int slot = read;
            if (slot >= 0) {
                reads.computeIfAbsent(slot, s -> new ArrayList<>()).add(position);
            }
            if (slot >= 0 && variables.stream().noneMatch(v -> v.slot() == slot && v.holdsAt(position))) {
                return null;
            }
        }
        // A parameter that never changes is passed again with the next call.
        variables.removeIf(variable -> variable.slot() < parameters && !changed.contains(variable.slot()));
        List<List<Variable>> kept = new ArrayList<>();
        for (int barrier : barriers) {
            int reached = reached(elements, positions, barrier);
            kept.add(variables.stream()
                    .filter(variable -> variable.holdsAt(barrier)
                            && reads.getOrDefault(variable.slot(), List.of()).stream()
                                    .anyMatch(read -> read >= reached && variable.holdsAt(read)))
                    .toList());
        }
        return kept.isEmpty() ? null : new Resumable(kept);
    }

    /** The first element that may execute after that one: the beginning of its outermost loop, or itself. */
    private static int reached(List<CodeElement> elements, Map<Label, Integer> positions, int position) {
        int reached = position;
        for (int i = elements.size() - 1; i >= reached; i--) {
            int from = reached;
            for (Label target : targets(elements.get(i))) {
                from = Math.min(from, positions.getOrDefault(target, 0));
            }
            if (from < reached) {
                reached = from;
                i = elements.size();
            }
        }
        return reached;
    }

    private static List<Label> targets(CodeElement element) {
        return switch (element) {
            case BranchInstruction branch -> List.of(branch.target());
            case TableSwitchInstruction table -> targets(table.defaultTarget(), table.cases());
            case LookupSwitchInstruction lookup -> targets(lookup.defaultTarget(), lookup.cases());
            default -> List.of();
        };
    }

    private static List<Label> targets(Label others, List<SwitchCase> cases) {
        return Stream.concat(Stream.of(others), cases.stream().map(SwitchCase::target))
                .toList();
    }

    private static Map<Label, Integer> positions(List<CodeElement> elements) {
        Map<Label, Integer> positions = new HashMap<>();
        for (int i = 0; i < elements.size(); i++) {
            if (elements.get(i) instanceof LabelTarget target) {
                positions.put(target.label(), i);
            }
        }
        return positions;
    }

    private static List<Variable> variables(List<CodeElement> elements, Map<Label, Integer> positions) {
        List<Variable> variables = new ArrayList<>();
        for (CodeElement element : elements) {
            if (element instanceof LocalVariable variable) {
                variables.add(new Variable(
                        variable.slot(),
                        variable.typeSymbol(),
                        positions.getOrDefault(variable.startScope(), -1),
                        positions.getOrDefault(variable.endScope(), elements.size())));
            }
        }
        return variables;
    }

    @Override
    public void atStart(CodeBuilder builder) {
        frame = builder.allocateLocal(TypeKind.REFERENCE);
        builder.invokestatic(FRAME, "current", MethodTypeDesc.of(FRAME)).astore(frame);
        Label start = builder.newLabel();
        List<SwitchCase> cases = new ArrayList<>();
        for (int i = 0; i < kept.size(); i++) {
            cases.add(SwitchCase.of(i + 1, builder.newLabel()));
        }
        builder.aload(frame)
                .invokevirtual(FRAME, "resume", MethodTypeDesc.of(ConstantDescs.CD_int))
                .tableswitch(start, cases);
        for (int i = 0; i < kept.size(); i++) {
            builder.labelBinding(cases.get(i).target());
            for (int v = 0; v < kept.get(i).size(); v++) {
                restore(builder, v, kept.get(i).get(v));
            }
            Label behind = builder.newLabel();
            after.add(behind);
            builder.goto_(behind);
        }
        builder.labelBinding(start);
    }

    @Override
    public void accept(CodeBuilder builder, CodeElement element) {
        if (!isBarrier(element)) {
            builder.with(element);
            return;
        }
        int barrier = kept.size() - after.size();
        builder.pop(); // the context
        List<Variable> variables = kept.get(barrier);
        for (int v = 0; v < variables.size(); v++) {
            keep(builder, v, variables.get(v));
        }
        builder.aload(frame)
                .loadConstant(barrier + 1)
                .invokevirtual(FRAME, "stop", MethodTypeDesc.of(ConstantDescs.CD_void, ConstantDescs.CD_int))
                .return_()
                .labelBinding(after.removeFirst());
    }

    private void keep(CodeBuilder builder, int index, Variable variable) {
        builder.aload(frame)
                .loadConstant(index)
                .loadLocal(variable.kind(), variable.slot())
                .invokevirtual(
                        FRAME,
                        "put",
                        MethodTypeDesc.of(ConstantDescs.CD_void, ConstantDescs.CD_int, value(variable.kind())));
    }

    private void restore(CodeBuilder builder, int index, Variable variable) {
        String getter = switch (variable.kind()) {
            case FLOAT -> "getFloat";
            case DOUBLE -> "getDouble";
            case LONG -> "getLong";
            case REFERENCE -> "getObject";
            default -> "getInt";
        };
        builder.aload(frame)
                .loadConstant(index)
                .invokevirtual(FRAME, getter, MethodTypeDesc.of(value(variable.kind()), ConstantDescs.CD_int));
        if (variable.kind() == TypeKind.REFERENCE) {
            builder.checkcast(variable.type());
        }
        builder.storeLocal(variable.kind(), variable.slot());
    }

    private static ClassDesc value(TypeKind kind) {
        return kind == TypeKind.REFERENCE ? ConstantDescs.CD_Object : kind.upperBound();
    }
}
