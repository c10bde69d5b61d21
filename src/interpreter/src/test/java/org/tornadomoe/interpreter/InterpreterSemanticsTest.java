package org.tornadomoe.interpreter;

class InterpreterSemanticsTest extends Semantics {}
