package org.tornadomoe.build;

import java.io.IOException;
import java.lang.classfile.ClassFile;
import java.lang.classfile.ClassTransform;
import java.lang.classfile.attribute.RecordAttribute;
import java.lang.classfile.attribute.RecordComponentInfo;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.stream.Stream;

/**
 * Takes the annotations off the components of compiled records: HotSpot redefines no record that has them, PIT puts its
 * mutants into a class by redefining it, and it counts those that it couldn't put in as killed.
 */
public final class PlainRecords {
    private PlainRecords() {}

    /** Rewrites the class files under {@code args[0]} that need it. */
    public static void main(String[] args) throws IOException {
        List<Path> files;
        try (Stream<Path> all = Files.walk(Path.of(args[0]))) {
            files = all.filter(file -> file.toString().endsWith(".class")).toList();
        }
        for (Path file : files) {
            byte[] bytes = Files.readAllBytes(file);
            byte[] plain = plain(bytes);
            if (plain != bytes) {
                Files.write(file, plain);
            }
        }
    }

    private static byte[] plain(byte[] bytes) {
        ClassFile classFile = ClassFile.of();
        var model = classFile.parse(bytes);
        boolean annotated = model.findAttribute(java.lang.classfile.Attributes.record()).stream()
                .flatMap(record -> record.components().stream())
                .anyMatch(component -> isAnnotated(component));
        if (!annotated) {
            return bytes;
        }
        return classFile.transformClass(model, ClassTransform.ofStateful(() -> (builder, element) -> {
            if (element instanceof RecordAttribute record) {
                builder.with(RecordAttribute.of(record.components().stream()
                        .map(component -> RecordComponentInfo.of(
                                component.name(),
                                component.descriptor(),
                                component.attributes().stream()
                                        .filter(attribute -> !attribute
                                                .attributeName()
                                                .stringValue()
                                                .endsWith("Annotations"))
                                        .toList()))
                        .toList()));
            } else {
                builder.with(element);
            }
        }));
    }

    private static boolean isAnnotated(RecordComponentInfo component) {
        return component.attributes().stream()
                .anyMatch(attribute -> attribute.attributeName().stringValue().endsWith("Annotations"));
    }
}
