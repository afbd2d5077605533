"""Operations behind one signature each, with a plain reference beside every fast path."""
